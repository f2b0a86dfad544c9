use super::*;

pub(crate) fn export() -> Export {
    Export { name: "web-0".to_owned(), size: 1 << 20, read_only: false, fast_zeroes: true }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &be32(data.len()), data].concat()
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    [&be32(name.len())[..], name.as_bytes(), rest].concat()
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = named(name, &be32(queries.len()));
    queries.iter().for_each(|query| data.extend(named(query, &[])));
    data
}

/// The answers in `out`: the option, the kind, what it says.
fn answers(mut out: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut answers = Vec::new();
    while !out.is_empty() {
        let mut fields = Fields(out);
        assert_eq!(fields.u64(), Some(OPTION_REPLY_MAGIC));
        let (option, kind, bytes) = (fields.u32().unwrap(), fields.u32().unwrap(), fields.u32().unwrap() as usize);
        answers.push((option, kind, fields.0[..bytes].to_vec()));
        out = &fields.0[bytes..];
    }
    answers
}

struct Talk {
    handshake: Handshake,
    out: Vec<u8>,
}

impl Talk {
    fn begun(flags: u32) -> Self {
        let mut out = Vec::new();
        let mut handshake = Handshake::begin(&mut out);
        assert_eq!(out, b"NBDMAGICIHAVEOPT\0\x03");
        assert_eq!(handshake.on(&flags.to_be_bytes(), &export(), &mut out), Ok((4, Step::More)));
        out.clear();
        Self { handshake, out }
    }

    fn says(&mut self, number: u32, data: &[u8]) -> Step {
        self.out.clear();
        let bytes = option(number, data);
        let (taken, step) = self.handshake.on(&bytes, &export(), &mut self.out).unwrap();
        assert_eq!(taken, bytes.len());
        step
    }

    /// The kinds of the answers.
    fn kinds(&self) -> Vec<u32> {
        answers(&self.out).iter().map(|(_, kind, _)| *kind).collect()
    }
}

#[test]
fn qemus_talk_ends_in_requests_with_chunks_and_contexts() {
    let mut talk = Talk::begun(3);

    assert_eq!(talk.says(11, &[]), Step::More, "extended headers are not known");
    assert_eq!(talk.kinds(), [answer::ERR_UNSUPPORTED]);
    talk.says(option::STRUCTURED_REPLY, &[]);
    assert_eq!(talk.kinds(), [answer::ACK]);
    talk.says(option::SET_META_CONTEXT, &queries("web-0", &[BASE_ALLOCATION, "qemu:dirty-bitmap:b"]));
    let said = answers(&talk.out);
    assert_eq!(said[0], (10, answer::META_CONTEXT, [&1u32.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat()));
    assert_eq!(said[1].1, answer::ACK);
    let step = talk.says(option::GO, &named("web-0", &[0, 1, 0, 3]));

    assert_eq!(step, Step::Ready(Agreed { structured: true, allocation: true }));
    let said = answers(&talk.out);
    // Flags: has flags, flush, FUA, trim, write zeroes, DF, fast zero.
    assert_eq!(said[0].2, [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &0x08ed_u16.to_be_bytes()].concat());
    assert_eq!(said[1].2, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0], "512, 4096, 32 MiB");
    assert_eq!(said[2].1, answer::ACK);
}

#[test]
fn an_old_client_gets_the_export_by_its_name_and_124_zeros_unless_it_wants_none() {
    let mut talk = Talk::begun(1);
    assert_eq!(talk.says(option::EXPORT_NAME, b"web-0"), Step::Ready(Agreed::default()));
    assert_eq!(talk.out.len(), 10 + 124);
    // Without chunks there is nothing to keep whole.
    assert_eq!(talk.out[8..10], 0x086d_u16.to_be_bytes());

    let mut talk = Talk::begun(3);
    assert_eq!(talk.says(option::EXPORT_NAME, b""), Step::Ready(Agreed::default()));
    assert_eq!(talk.out.len(), 10);

    let mut talk = Talk::begun(3);
    let refused = talk.handshake.on(&option(option::EXPORT_NAME, b"other"), &export(), &mut talk.out);
    assert_eq!(refused, Err(Broken::UnknownExport { name: "other".to_owned() }));
}

#[test]
fn what_is_not_known_or_not_well_said_is_refused_and_the_talk_goes_on() {
    let cases: [(u32, Vec<u8>, u32); 14] = [
        (option::STARTTLS, vec![], answer::ERR_POLICY),
        (option::STARTTLS, vec![1], answer::ERR_INVALID),
        (option::LIST, vec![1], answer::ERR_INVALID),
        (option::STRUCTURED_REPLY, vec![1], answer::ERR_INVALID),
        (99, vec![1, 2, 3], answer::ERR_UNSUPPORTED),
        (0, vec![], answer::ERR_UNSUPPORTED),
        (option::GO, named("other", &[0, 0]), answer::ERR_UNKNOWN),
        (option::INFO, named("other", &[0, 0]), answer::ERR_UNKNOWN),
        (option::GO, vec![], answer::ERR_INVALID),
        (option::GO, named("web-0", &[0, 1]), answer::ERR_INVALID),
        (option::GO, named("web-0", &[0, 0, 7]), answer::ERR_INVALID),
        (option::GO, u32::MAX.to_be_bytes().to_vec(), answer::ERR_INVALID),
        (option::SET_META_CONTEXT, queries("web-0", &[]), answer::ERR_INVALID), // no structured replies yet
        (option::LIST_META_CONTEXT, vec![9; 7], answer::ERR_INVALID),
    ];
    let mut talk = Talk::begun(3);
    for (number, data, expected) in cases {
        assert_eq!(talk.says(number, &data), Step::More);
        assert_eq!(talk.kinds(), [expected], "option {number} with {data:?}");
    }
    assert!(matches!(talk.says(option::GO, &named("", &[0, 0])), Step::Ready(_)));
}

#[test]
fn contexts_are_listed_by_namespace_and_selected_by_name_alone() {
    let mut talk = Talk::begun(3);
    talk.says(option::STRUCTURED_REPLY, &[]);
    let cases: [(u32, &[&str], bool); 6] = [
        (option::LIST_META_CONTEXT, &[], true),
        (option::LIST_META_CONTEXT, &["base:"], true),
        (option::LIST_META_CONTEXT, &["x-none:"], false),
        (option::SET_META_CONTEXT, &["base:"], false),
        (option::SET_META_CONTEXT, &["x-none:", BASE_ALLOCATION], true),
        (option::SET_META_CONTEXT, &[], false),
    ];
    for (number, asked, found) in cases {
        talk.says(number, &queries("", asked));
        let expected: &[u32] = if found { &[answer::META_CONTEXT, answer::ACK] } else { &[answer::ACK] };
        assert_eq!(talk.kinds(), expected, "{number} {asked:?}");
    }
    let step = talk.says(option::GO, &named("", &[0, 0]));
    assert_eq!(step, Step::Ready(Agreed { structured: true, allocation: false }), "the last choice counts");

    talk.says(option::SET_META_CONTEXT, &queries("other", &[]));
    assert_eq!(talk.kinds(), [answer::ERR_UNKNOWN]);
}

#[test]
fn the_list_names_the_export_and_a_changed_mind_is_acknowledged() {
    let mut talk = Talk::begun(3);
    talk.says(option::LIST, &[]);
    assert_eq!(answers(&talk.out)[0], (option::LIST, answer::SERVER, named("web-0", &[])));
    assert_eq!(talk.says(option::ABORT, &[]), Step::Over);
    assert_eq!(talk.kinds(), [answer::ACK]);
}

#[test]
fn an_option_that_is_too_long_is_skipped_however_it_comes() {
    let mut talk = Talk::begun(3);
    talk.out.clear();
    let long = option(option::GO, &vec![7; OPTION_BYTES_MAX + 1]);
    let mut at = 0;
    for end in [16, 1000, 1001, long.len()] {
        while at < end {
            let (taken, step) = talk.handshake.on(&long[at..end], &export(), &mut talk.out).unwrap();
            assert_eq!(step, Step::More);
            at += taken;
            if taken == 0 {
                break;
            }
        }
    }
    assert_eq!(talk.kinds(), [answer::ERR_TOO_BIG]);
    assert!(matches!(talk.says(option::GO, &named("", &[0, 0])), Step::Ready(_)));
}

#[test]
fn nonsense_ends_it() {
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(&mut out);
    assert_eq!(handshake.on(&[0, 0, 0, 4], &export(), &mut out), Err(Broken::ClientFlags { flags: 4 }));

    let mut talk = Talk::begun(3);
    assert_eq!(talk.handshake.on(&[7; 16], &export(), &mut talk.out), Err(Broken::OptionMagic));

    let mut talk = Talk::begun(3);
    for _ in 0..OPTIONS_MAX {
        talk.says(option::LIST, &[]);
    }
    let once_more = talk.handshake.on(&option(option::LIST, &[]), &export(), &mut talk.out);
    assert_eq!(once_more, Err(Broken::TooManyOptions { max: OPTIONS_MAX }));
}
