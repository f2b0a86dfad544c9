//! Images of disks that come from outside, or go there: raw, qcow2 and VMDK.
//!
//! An image is written by somebody else, and perhaps to do harm: it can name other files as its own content, be larger inside than
//! any disk, or be made to break the program that reads it. So three things look at it, one after the other, and each refuses by
//! name:
//!
//! ```text
//!   file --> source     a regular file, no symbolic link anywhere in its path, opened once
//!        --> header     our own look at its first bytes: what it is, how large, and that it needs nothing but itself
//!        --> qemu-img   in a sandbox (tool): says the same, then converts, then compares
//! ```
//!
//! `qemu-img` never sees a file. What it reads and writes are NBD connections to this process, handed to it as descriptors; it
//! runs as a user that owns nothing, without a network, with limits on time and memory ([`tool`]). It cannot open what an image
//! names, for it has neither the right nor the way.
//!
//! Whoever imports or exports owns all of this for that long: dropped in the middle, the child is killed and what was written stays
//! written.

mod convert;
mod file;
mod header;
mod info;
mod source;
mod tool;

pub use convert::{ConvertError, Inspected, Progress, Report, export, import};
pub use header::{Format, Header, Refused};
pub use source::{Source, SourceError};
pub use tool::{Identity, Tool, ToolError, ToolLimits};
