//! The block path of one node: what QEMU asks of a virtual disk, down to a file in a pool.
//!
//! ```text
//!   QEMU --NBD, AF_UNIX--> nbd::serve --operations--> Disk --jobs--> io_uring or threads --> POOL/NAME/data
//!        <-----------------           <-completions-- (a Replica, or a mirror of several)
//! ```
//!
//! [`nbd`] is the server: a pure part that turns bytes into operations and outcomes into bytes, and a thin one that has the
//! socket. [`Disk`] is what it serves, whatever that is made of. [`Pool`] and [`Replica`] are one copy of a volume on this node.
//! Who may write, and to which copies, is decided elsewhere.
//!
//! Data is copied once on its way in, from the socket into the memory that the file is written from, and once on its way out.

mod buffers;
mod disk;
mod engine;
mod map;
pub mod nbd;
mod replica;
mod zeroes;

#[cfg(fuzzing)]
pub mod fuzzing;

pub use buffers::{Buffer, Buffers};
pub use disk::{
    BLOCK_BYTES, Completion, Disk, DiskError, Extent, Operation, Outcome, Piece, SECTOR_BYTES, TRANSFER_BYTES_MAX, Tag,
    check_range, perform,
};
pub use engine::EngineKind;
pub use replica::{
    Beside, CreateError, DeleteError, Found, GrowError, OpenError, Pool, PoolError, Replica, Usage, VOLUME_BYTES_MAX,
};
