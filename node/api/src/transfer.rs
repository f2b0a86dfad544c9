//! Volumes filled from files, and read into files.

use serde::{Deserialize, Serialize};

use crate::ApiError;

/// The largest disk in an image that is taken unless the user says otherwise, in bytes: images can be made that are small outside
/// and huge inside.
pub const IMPORT_BYTES_MAX_DEFAULT: u64 = 1 << 40;

/// What kind of image a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's bytes, and nothing else.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, in one file.
    Vmdk,
}

/// A volume to be, with what is in an image. The file is on the node that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportVolume {
    /// An absolute path on the node that is asked: a regular file, no symbolic link anywhere in its path.
    pub path: String,
    /// What it is; without it, what its first bytes say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// One replica in each of these pools (`NODE:POOL`), one to three.
    pub pools: Vec<String>,
    /// The volume's size in bytes; without it, that of the disk in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The largest disk in an image that is taken, in bytes.
    #[serde(default = "import_bytes_max")]
    pub bytes_max: u64,
}

/// A file to be, raw, with what is in a volume. It is on the node that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportVolume {
    /// An absolute path on the node that is asked, where nothing is yet.
    pub path: String,
}

fn import_bytes_max() -> u64 {
    IMPORT_BYTES_MAX_DEFAULT
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferKind {
    /// From a file into a volume.
    Import,
    /// From a volume into a file.
    Export,
}

/// An import or an export: on one node, for as long as its daemon lives. It goes on whether or not somebody watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferView {
    /// Its number on that node.
    pub id: u64,
    /// Which way.
    pub kind: TransferKind,
    /// The volume.
    pub volume: String,
    /// The file.
    pub path: String,
    /// `preparing`, `copying`, `comparing`, `ended`.
    pub phase: String,
    /// Bytes read in this phase.
    pub read_bytes: u64,
    /// Bytes that there are to read, about.
    pub total_bytes: u64,
    /// Bytes written; holes are none.
    pub written_bytes: u64,
    /// When it began.
    pub started: u64,
    /// Why it came to nothing; `null` while it goes on, and when it is done.
    pub error: Option<ApiError>,
}

impl TransferView {
    /// It is over.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.phase == "ended"
    }
}
