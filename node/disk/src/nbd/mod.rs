//! An NBD server for one connection that is there already, over a Unix socket: QEMU's way to a volume.
//!
//! ```text
//!   bytes --> Decoder --events--> serve --operations--> Disk
//!                (pure)             |  <--completions--
//!   bytes <-- Outbox <--------------+
//! ```
//!
//! [`serve`] is one future without tasks of its own: it reads what has come, hands everything in it to the disk together, and writes
//! what has ended together, in whatever order that is. Bounded: so many requests and bytes under way ([`REQUESTS_IN_FLIGHT_MAX`],
//! [`BYTES_IN_FLIGHT_MAX`]), beyond which the socket is not read.
//!
//! What is spoken: the fixed newstyle talk, GO and INFO, structured replies with holes, `base:allocation`; READ, WRITE, FLUSH, TRIM,
//! WRITE_ZEROES, BLOCK_STATUS, FUA, FAST_ZERO. No TLS, as the socket does not leave the host; no CACHE, as there is nothing to warm;
//! no second connection to the same disk. Blocks have 512 bytes at least: guests' disks know nothing smaller.
//!
//! A flush is handed to the disk after every write that was answered before the client could send it, and answered when the disk says
//! so; the rest of the promise is the disk's.

mod decoder;
mod handshake;
mod outbox;
mod proto;
mod request;
mod server;

#[cfg(fuzzing)]
pub(crate) use self::decoder::{Decoder, Event, INBOX_BYTES};
pub use self::server::{BYTES_IN_FLIGHT_MAX, End, REQUESTS_IN_FLIGHT_MAX, ServeOptions, serve};

/// What is offered to the client.
#[derive(Debug, Clone)]
pub(crate) struct Export {
    pub(crate) name: String,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    pub(crate) fast_zeroes: bool,
}

impl Export {
    /// By its name, or by none.
    fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

/// The client cannot be understood any more: nothing tells where its next words begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It wants of the connection what this server does not know.
    #[error("the client has flags {flags:#x}, of which this server knows 0x3")]
    ClientFlags {
        /// All of its flags.
        flags: u32,
    },
    /// What should begin an option does not.
    #[error("the client sent something that is no option")]
    OptionMagic,
    /// It talks and talks.
    #[error("the client sent more than {max} options")]
    TooManyOptions {
        /// The limit.
        max: usize,
    },
    /// It asked for an export in the old way, which has no words for a refusal.
    #[error("the client asked for an export '{name}', which is not here")]
    UnknownExport {
        /// What it asked for.
        name: String,
    },
    /// What should begin a request does not.
    #[error("the client sent something that is no request")]
    RequestMagic,
}
