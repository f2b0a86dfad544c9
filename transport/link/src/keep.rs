//! Secrets on disk: one PEM file each, readable by its owner alone, replaced as a whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};

/// Writes a file that only its owner may read. After a crash it is there whole or not there: written aside, flushed,
/// renamed, and the rename flushed.
pub(crate) fn write(path: &Path, contents: &str) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let aside = path.with_extension("new");
    // A leftover from a crash may have other permissions; it is worth nothing.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    file.write_all(contents.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(directory)?.sync_all()
}

/// What [`read_private`] found instead of a secret.
pub(crate) enum Unread {
    /// The operating system's answer.
    Io(io::Error),
    /// Others than the owner get at it, by these permission bits: it may be no secret any more.
    Exposed(u32),
}

/// What is in a file that only its owner may read; `None`: there is none.
pub(crate) fn read_private(path: &Path) -> Result<Option<Vec<u8>>, Unread> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Unread::Io)?,
    };
    let bits = fs::metadata(path).map_err(Unread::Io)?.permissions().mode() & 0o077;
    if bits == 0 { Ok(Some(text)) } else { Err(Unread::Exposed(bits)) }
}

/// One block of PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut block = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        block.push_str(line);
        block.push('\n');
        rest = after;
    }
    block.push_str(&format!("-----END {label}-----\n"));
    block
}
