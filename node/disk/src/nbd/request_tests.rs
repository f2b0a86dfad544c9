use super::*;

const SIZE: u64 = 64 << 20;
const ALL: Agreed = Agreed { structured: true, allocation: true };

fn export() -> Export {
    Export { name: String::new(), size: SIZE, read_only: false, fast_zeroes: true }
}

fn header(command: u16, flags: u16, offset: u64, bytes: u32) -> Header {
    Header { flags, command, cookie: 7, offset, bytes }
}

fn refusal(asked: &Asked) -> Option<NbdError> {
    match asked {
        Asked::Refuse(error, _) => Some(*error),
        Asked::Do { .. } | Asked::Write { .. } | Asked::Disconnect => None,
    }
}

#[test]
fn a_header_is_read_field_by_field() {
    let bytes = [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0];
    let parsed = Header::parse(&bytes).unwrap();
    assert_eq!(parsed, Header { flags: 1, command: 6, cookie: 0x0102_0304_0506_0708, offset: 4096, bytes: 512 });

    let mut bad = bytes;
    bad[3] = 0x14;
    assert_eq!(Header::parse(&bad), Err(Broken::RequestMagic));
}

#[test]
fn what_is_well_asked_is_done() {
    let may = |asked: Asked| assert_eq!(refusal(&asked), None, "{asked:?}");
    may(judge(&header(command::READ, flag::DF, 0, TRANSFER_BYTES_MAX), &export(), ALL));
    may(judge(&header(command::WRITE, flag::FUA, SIZE - 512, 512), &export(), ALL));
    may(judge(&header(command::FLUSH, 0, 0, 0), &export(), ALL));
    may(judge(&header(command::TRIM, flag::FUA, 512, 512), &export(), ALL));
    may(judge(&header(command::BLOCK_STATUS, flag::REQ_ONE, 0, 64 << 20), &export(), ALL));
    let zeroes = flag::NO_HOLE | flag::FAST_ZERO | flag::FUA;
    let asked = judge(&header(command::WRITE_ZEROES, zeroes, 0, 64 << 20), &export(), ALL);
    let Asked::Do { operation: Operation::WriteZeroes { bytes, may_punch, fast_only, durable, .. }, .. } = asked else {
        panic!("{asked:?}")
    };
    assert_eq!((bytes, may_punch, fast_only, durable), (64 << 20, false, true, true));
    assert!(matches!(judge(&header(command::DISCONNECT, 0xffff, 9, 9), &export(), ALL), Asked::Disconnect));
}

#[test]
fn what_is_badly_asked_gets_the_right_error() {
    use NbdError::{Invalid, NoSpace};
    let end = SIZE - 512;
    let cases = [
        // Beyond the end: a write finds no room, the others ask for what is not there.
        (header(command::READ, 0, end, 1024), Invalid),
        (header(command::WRITE, 0, end, 1024), NoSpace),
        (header(command::WRITE_ZEROES, 0, end, 1024), NoSpace),
        (header(command::TRIM, 0, end, 1024), Invalid),
        (header(command::BLOCK_STATUS, 0, end, 1024), Invalid),
        (header(command::READ, 0, u64::MAX - 511, 512), Invalid),
        (header(command::WRITE, 0, u64::MAX - 511, 512), NoSpace),
        // Not whole sectors, or nothing.
        (header(command::READ, 0, 1, 512), Invalid),
        (header(command::WRITE, 0, 0, 511), Invalid),
        (header(command::READ, 0, 0, 0), Invalid),
        (header(command::WRITE, 0, 0, 0), Invalid),
        (header(command::TRIM, 0, 0, 0), Invalid),
        // Too long.
        (header(command::READ, 0, 0, TRANSFER_BYTES_MAX + 512), Invalid),
        (header(command::WRITE, 0, 0, TRANSFER_BYTES_MAX + 512), Invalid),
        // Flags of others.
        (header(command::READ, flag::NO_HOLE, 0, 512), Invalid),
        (header(command::WRITE, flag::DF, 0, 512), Invalid),
        (header(command::WRITE, 1 << 5, 0, 512), Invalid),
        (header(command::FLUSH, flag::REQ_ONE, 0, 0), Invalid),
        (header(command::FLUSH, 0, 0, 512), Invalid),
        // Unknown: CACHE, RESIZE, and what nobody has thought of.
        (header(5, 0, 0, 512), Invalid),
        (header(8, 0, 0, 512), Invalid),
        (header(0xffff, 0, 0, 512), Invalid),
    ];
    for (header, expected) in cases {
        assert_eq!(refusal(&judge(&header, &export(), ALL)), Some(expected), "{header:?}");
    }
}

#[test]
fn what_was_not_agreed_on_is_not_done() {
    let invalid = Some(NbdError::Invalid);
    let plain = Agreed::default();
    assert_eq!(refusal(&judge(&header(command::READ, flag::DF, 0, 512), &export(), plain)), invalid);
    assert_eq!(refusal(&judge(&header(command::BLOCK_STATUS, 0, 0, 512), &export(), plain)), invalid);
    let slow = Export { fast_zeroes: false, ..export() };
    assert_eq!(refusal(&judge(&header(command::WRITE_ZEROES, flag::FAST_ZERO, 0, 512), &slow, ALL)), invalid);
}

#[test]
fn a_read_only_export_changes_nothing_and_reads() {
    let export = Export { read_only: true, ..export() };
    for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(refusal(&judge(&header(command, 0, 0, 512), &export, ALL)), Some(NbdError::NotPermitted));
    }
    assert_eq!(refusal(&judge(&header(command::READ, 0, 0, 512), &export, ALL)), None);
    assert_eq!(refusal(&judge(&header(command::FLUSH, 0, 0, 0), &export, ALL)), None);
}
