//! Whole clusters: real daemons in network namespaces, real QEMU, a real Linux guest, and a client outside that holds them to
//! what they acknowledged. One story a file in `tests/`; this library is what the stories share.
//!
//! - [`World`] is one cluster with its lab. It is made by a test and is gone, with everything it started, when the test ends,
//!   however it ends; a test that fails prints what its daemons logged last.
//! - [`cli`] runs `pollux` on a node exactly as a user would, and [`views`] is the part of its JSON that the stories look at. It
//!   is written down here a second time on purpose: a field that changes its name breaks users' scripts, and these tests.
//! - [`following`] is a move that is followed, and [`events`] is what the log decides, so that a fault can be put at a chosen
//!   moment.
//! - [`console`] is a guest's serial console at which a test sits.
//! - [`client`] talks to the guest from where clients are, and [`watching`] keeps the ledger and counts who emits.
//! - [`debian`] is the guest with a whole Debian, what works on its disk, and [`ledger`] what its PostgreSQL committed.
//! - [`small_pool`] is a pool that can be filled.
//! - [`faults`] is the table of every place in a move and everything that can be done to it there, [`volume_faults`] the same of a
//!   move of a volume's replica, and [`disks`] what else there is to pools and volumes.
//! - [`census`] counts processes and interfaces on the nodes, which no daemon has a say in.
//! - [`waiting`] is the only way to wait: for a condition, with a deadline.
//!
//! The stories run the programs that are built; `cargo build -p pollux` comes before them. They need root and QEMU.

pub mod census;
pub mod cli;
pub mod client;
pub mod console;
pub mod debian;
pub mod disks;
pub mod events;
pub mod faults;
pub mod following;
pub mod image;
pub mod ledger;
pub mod small_pool;
mod sweeper;
pub mod views;
pub mod volume_faults;
pub mod waiting;
pub mod watching;
mod world;

pub use world::World;
