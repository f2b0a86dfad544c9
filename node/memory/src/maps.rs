//! Where a process has a file mapped, from `/proc/PID/maps`.

/// One mapping of the file in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileMapping {
    /// First address.
    pub(crate) start: u64,
    /// Address after the last.
    pub(crate) end: u64,
    /// Which byte of the file is at `start`.
    pub(crate) file_offset: u64,
}

/// Every mapping of the file with this device and inode, by rising address.
///
/// The name in the last column is not looked at: the process chooses it. A line that does not parse is skipped, because
/// mappings of other kinds are free to look as they like.
pub(crate) fn mappings_of(maps: &str, major: u32, minor: u32, inode: u64) -> Vec<FileMapping> {
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let _permissions = fields.next()?;
        let file_offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let (line_major, line_minor) = fields.next()?.split_once(':')?;
        let same = u32::from_str_radix(line_major, 16).ok()? == major
            && u32::from_str_radix(line_minor, 16).ok()? == minor
            && fields.next()?.parse::<u64>().ok()? == inode;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        (same && start < end).then_some(FileMapping { start, end, file_offset })
    };
    maps.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0-55f0 r-xp 00002000 08:01 1042                       /usr/bin/qemu
7f00-7f80 rw-s 00000000 00:01 77                         /memfd:pollux (deleted)
7f80-7fa0 rw-s 00001000 00:01 78                         /memfd:pollux (deleted)
8000-8080 r--s 00004000 00:01 77                         /memfd:pollux (deleted)
9000-9080 rw-p 00000000 00:00 0
ff00-ffff --xp 00000000 00:00 0                          [vsyscall]
not a line
";

    #[test]
    fn the_inode_decides_not_the_name() {
        let found = mappings_of(MAPS, 0, 1, 77);
        assert_eq!(
            found,
            [
                FileMapping { start: 0x7f00, end: 0x7f80, file_offset: 0 },
                FileMapping { start: 0x8000, end: 0x8080, file_offset: 0x4000 },
            ]
        );
        assert_eq!(mappings_of(MAPS, 8, 1, 77), []);
        assert_eq!(mappings_of("", 0, 1, 77), []);
    }
}
