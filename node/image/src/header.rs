//! What an image says of itself in its first bytes, read by us before anything else does. Pure.
//!
//! qcow2: docs/interop/qcow2.txt of QEMU; VMDK: VMware's "Virtual Disk Format 5.0".

use std::fmt;

/// How much of an image is looked at, in bytes: a VMDK's descriptor ends before that.
pub(crate) const HEAD_BYTES: usize = 64 * 1024;

/// Formats that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes, and nothing else.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, in one file: `monolithicSparse` or `streamOptimized`.
    Vmdk,
}

/// An image that needs nothing but itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub format: Format,
    /// How large the disk in it is, in bytes.
    pub size: u64,
}

/// Why an image is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is something else.
    #[error("it is {what}, and not an image of a disk in a format that is taken (raw, qcow2, vmdk); {todo}")]
    Another {
        /// What it looks like.
        what: &'static str,
        /// What can be done.
        todo: &'static str,
    },
    /// Its bytes are not what the format says.
    #[error("it is no sound {format} image: {why}")]
    Broken {
        /// The format.
        format: Format,
        /// What is wrong.
        why: &'static str,
    },
    /// Part of its content is another image.
    #[error(
        "it names a backing file, whose content is part of its own; make one image of both where they came from (`qemu-img \
         convert`)"
    )]
    BackingFile,
    /// Its content is in other files.
    #[error(
        "its content is in other files, which it names; make one file of them where they came from (`qemu-img convert`)"
    )]
    OtherFiles,
    /// It can be read only with a secret.
    #[error("it is encrypted; decrypt it where it came from")]
    Encrypted,
    /// It was not closed in good order, and is marked so.
    #[error("it is marked as corrupt; repair it where it came from (`qemu-img check -r all`)")]
    Corrupt,
    /// It uses something that came after this version.
    #[error("it uses features of {format} that this version does not know; convert it to plain {format} first")]
    Newer {
        /// The format.
        format: Format,
    },
    /// The disk in it is too large.
    #[error("the disk in it has {size} bytes, more than the {max} that are allowed")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// There is nothing in it.
    #[error("the disk in it has no bytes")]
    Empty,
    /// What `qemu-img` reads in it is not what its header says.
    #[error("it says one thing and is read as another ({what}): it was made to deceive")]
    Deceitful {
        /// What differs.
        what: &'static str,
    },
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Format {
    /// QEMU's word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

/// What begins like this is something else. It can still be taken if somebody says that it is raw.
const OTHERS: &[(&[u8], &str, &str)] = &[
    (b"\x1f\x8b", "compressed (gzip)", UNPACK),
    (b"\xfd7zXZ\0", "compressed (xz)", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", UNPACK),
    (b"BZh", "compressed (bzip2)", UNPACK),
    (b"PK\x03\x04", "a ZIP archive", UNPACK),
    (b"vhdxfile", "a VHDX image", CONVERT),
    (b"conectix", "a VHD image", CONVERT),
    (b"QED\0", "a QED image", CONVERT),
    (b"COWD", "a VMDK image of an old kind", CONVERT),
    (b"LUKS\xba\xbe", "encrypted (LUKS)", "decrypt it first, or say that it is raw if the guest is to"),
    (b"<<< ", "a VDI image", CONVERT),
];
const UNPACK: &str = "unpack it first";
const CONVERT: &str = "convert it first (`qemu-img convert -O qcow2`)";

/// What this is, if nobody says.
pub(crate) fn sniff(head: &[u8]) -> Result<Format, Refused> {
    if head.starts_with(b"QFI\xfb") {
        return Ok(Format::Qcow2);
    }
    if head.starts_with(b"KDMV") {
        return Ok(Format::Vmdk);
    }
    if head.starts_with(b"# Disk DescriptorFile") {
        return Err(Refused::OtherFiles);
    }
    match OTHERS.iter().find(|(magic, _, _)| head.starts_with(magic)) {
        Some((_, what, todo)) => Err(Refused::Another { what, todo }),
        None => Ok(Format::Raw),
    }
}

/// Reads the header of a file of `bytes` bytes that begins with `head` (all of it, or [`HEAD_BYTES`]).
pub(crate) fn read(format: Format, head: &[u8], bytes: u64) -> Result<Header, Refused> {
    let size = match format {
        Format::Raw => bytes,
        Format::Qcow2 => qcow2(head)?,
        Format::Vmdk => vmdk(head)?,
    };
    if size == 0 { Err(Refused::Empty) } else { Ok(Header { format, size }) }
}

fn be32(head: &[u8], at: usize) -> Option<u32> {
    head.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn be64(head: &[u8], at: usize) -> Option<u64> {
    head.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn le32(head: &[u8], at: usize) -> Option<u32> {
    head.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn le64(head: &[u8], at: usize) -> Option<u64> {
    head.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Incompatible features of qcow2: not closed (its content counts all the same), corrupt, another file, another compression,
/// subclusters.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const SUBCLUSTERS: u64 = 1 << 4;

fn qcow2(head: &[u8]) -> Result<u64, Refused> {
    let format = Format::Qcow2;
    let broken = |why| Refused::Broken { format, why };
    let short = || broken("it ends within its header");
    if !head.starts_with(b"QFI\xfb") {
        return Err(broken("it does not begin as one"));
    }
    let version = be32(head, 4).ok_or_else(short)?;
    let features = match version {
        2 => 0,
        3 => be64(head, 72).ok_or_else(short)?,
        _ => return Err(Refused::Newer { format }),
    };
    if be64(head, 8).ok_or_else(short)? != 0 || be32(head, 16).ok_or_else(short)? != 0 {
        return Err(Refused::BackingFile);
    }
    if !(9..=21).contains(&be32(head, 20).ok_or_else(short)?) {
        return Err(broken("its clusters have an impossible size"));
    }
    let size = be64(head, 24).ok_or_else(short)?;
    if be32(head, 32).ok_or_else(short)? != 0 {
        return Err(Refused::Encrypted);
    }
    if features & DATA_FILE != 0 {
        return Err(Refused::OtherFiles);
    }
    if features & CORRUPT != 0 {
        return Err(Refused::Corrupt);
    }
    if features & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | SUBCLUSTERS) != 0 {
        return Err(Refused::Newer { format });
    }
    Ok(size)
}

/// What a VMDK counts in.
const SECTOR: u64 = 512;

fn vmdk(head: &[u8]) -> Result<u64, Refused> {
    let format = Format::Vmdk;
    let broken = |why| Refused::Broken { format, why };
    let short = || broken("it ends within its header");
    if !head.starts_with(b"KDMV") {
        return Err(broken("it does not begin as one"));
    }
    if !(1..=3).contains(&le32(head, 4).ok_or_else(short)?) {
        return Err(Refused::Newer { format });
    }
    let capacity = le64(head, 12).ok_or_else(short)?;
    let (begin, sectors) = (le64(head, 28).ok_or_else(short)?, le64(head, 36).ok_or_else(short)?);
    // Without data of its own the descriptor alone says where the content is.
    if capacity == 0 || sectors == 0 {
        return Err(Refused::OtherFiles);
    }
    let place = |sectors: u64| sectors.checked_mul(SECTOR).and_then(|bytes| usize::try_from(bytes).ok());
    let (begin, bytes) = place(begin).zip(place(sectors)).ok_or_else(|| broken("its descriptor lies nowhere"))?;
    let end = begin.checked_add(bytes).ok_or_else(|| broken("its descriptor lies nowhere"))?;
    // An empty image ends with its descriptor, a full one goes on.
    let text = head.get(begin..end.min(head.len())).filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| broken("its descriptor lies too far from its beginning"))?;
    if end > HEAD_BYTES {
        return Err(broken("its descriptor is too long"));
    }
    descriptor(text)?;
    capacity.checked_mul(SECTOR).ok_or_else(|| broken("its size is impossible"))
}

/// The text in a VMDK: it must name one part, the file itself, and no parent.
fn descriptor(text: &[u8]) -> Result<(), Refused> {
    let broken = |why| Refused::Broken { format: Format::Vmdk, why };
    let text: Vec<u8> = text.iter().copied().take_while(|byte| *byte != 0).collect();
    let text = String::from_utf8_lossy(&text);
    let (mut kind, mut parts) = (None, 0);
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once('=').map_or((line, ""), |(key, value)| (key.trim(), value.trim()));
        let value = value.trim_matches('"');
        match key.to_ascii_lowercase().as_str() {
            "parentcid" if !value.eq_ignore_ascii_case("ffffffff") => return Err(Refused::BackingFile),
            "parentfilenamehint" => return Err(Refused::BackingFile),
            "createtype" => kind = Some(value.to_ascii_lowercase()),
            _ => {
                let first = line.split_ascii_whitespace().next().unwrap_or_default();
                parts += usize::from(matches!(first, "RW" | "RDONLY" | "NOACCESS"));
            }
        }
    }
    match kind.as_deref() {
        Some("monolithicsparse" | "streamoptimized") if parts == 1 => Ok(()),
        Some("monolithicsparse" | "streamoptimized") => Err(Refused::OtherFiles),
        Some(_) => Err(Refused::OtherFiles),
        None => Err(broken("its descriptor does not say what kind it is")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain qcow2 of 10 MiB, as far as its header goes.
    fn plain() -> Vec<u8> {
        let mut head = vec![0; 104];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[7] = 3;
        head[23] = 16;
        head[24..32].copy_from_slice(&(10u64 << 20).to_be_bytes());
        head
    }

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = plain();
        head[at..at + bytes.len()].copy_from_slice(bytes);
        head
    }

    fn qcow2(head: &[u8]) -> Result<u64, Refused> {
        read(Format::Qcow2, head, head.len() as u64).map(|header| header.size)
    }

    #[test]
    fn a_plain_qcow2_is_taken_and_each_trick_is_refused_by_name() {
        assert_eq!(qcow2(&plain()), Ok(10 << 20));
        assert_eq!(qcow2(&with(8, &1u64.to_be_bytes())), Err(Refused::BackingFile));
        assert_eq!(qcow2(&with(16, &9u32.to_be_bytes())), Err(Refused::BackingFile), "a name without a place");
        assert_eq!(qcow2(&with(32, &2u32.to_be_bytes())), Err(Refused::Encrypted));
        assert_eq!(qcow2(&with(72, &DATA_FILE.to_be_bytes())), Err(Refused::OtherFiles));
        assert_eq!(qcow2(&with(72, &CORRUPT.to_be_bytes())), Err(Refused::Corrupt));
        assert_eq!(qcow2(&with(72, &(1u64 << 63).to_be_bytes())), Err(Refused::Newer { format: Format::Qcow2 }));
        assert_eq!(qcow2(&with(4, &4u32.to_be_bytes())), Err(Refused::Newer { format: Format::Qcow2 }));
        assert_eq!(qcow2(&with(24, &[0; 8])), Err(Refused::Empty));
        assert_eq!(qcow2(&with(72, &DIRTY.to_be_bytes())), Ok(10 << 20), "what was not closed can be read");
        for end in 0..80 {
            assert!(matches!(qcow2(&plain()[..end]), Err(Refused::Broken { .. })), "cut at {end}");
        }
    }

    fn vmdk(text: &str, capacity: u64) -> Result<u64, Refused> {
        let mut head = vec![0; 512 * 21];
        head[..4].copy_from_slice(b"KDMV");
        head[4] = 1;
        head[12..20].copy_from_slice(&capacity.to_le_bytes());
        head[28..36].copy_from_slice(&1u64.to_le_bytes());
        head[36..44].copy_from_slice(&20u64.to_le_bytes());
        head[512..512 + text.len()].copy_from_slice(text.as_bytes());
        read(Format::Vmdk, &head, head.len() as u64).map(|header| header.size)
    }

    #[test]
    fn a_vmdk_names_nothing_but_itself() {
        let text = |more: &str| {
            format!("# Disk DescriptorFile\ncreateType=\"monolithicSparse\"\nRW 20480 SPARSE \"a.vmdk\"\n{more}")
        };
        assert_eq!(vmdk(&text("parentCID=ffffffff\n"), 20_480), Ok(10 << 20));
        assert_eq!(vmdk(&text("parentCID = d0ec9565\n"), 20_480), Err(Refused::BackingFile));
        assert_eq!(vmdk(&text("parentFileNameHint=\"/etc/shadow\"\n"), 20_480), Err(Refused::BackingFile));
        assert_eq!(vmdk(&text("RW 1 FLAT \"/etc/shadow\" 0\n"), 20_480), Err(Refused::OtherFiles), "a second part");
        assert_eq!(vmdk(&text(""), 0), Err(Refused::OtherFiles), "nothing in it but the descriptor");
        assert_eq!(vmdk("createType=\"monolithicFlat\"\nRW 1 FLAT \"x\" 0", 1), Err(Refused::OtherFiles));
        assert!(matches!(vmdk("RW 1 SPARSE \"x\"", 1), Err(Refused::Broken { .. })));
        assert!(matches!(vmdk(&text(""), u64::MAX), Err(Refused::Broken { .. })), "an impossible size");
    }

    #[test]
    fn what_is_something_else_is_told_with_what_to_do() {
        assert_eq!(sniff(&plain()), Ok(Format::Qcow2));
        assert_eq!(sniff(b"KDMV...."), Ok(Format::Vmdk));
        assert_eq!(sniff(&[0; 512]), Ok(Format::Raw));
        assert_eq!(sniff(b""), Ok(Format::Raw));
        assert_eq!(sniff(b"# Disk DescriptorFile\n"), Err(Refused::OtherFiles));
        let packed = sniff(b"\x1f\x8b\x08").unwrap_err().to_string();
        assert!(packed.contains("gzip") && packed.contains("unpack"), "{packed}");
    }
}
