//! Stories about the whole state machine. Every entry of every story is followed by both checks of [`crate::invariant`].

mod along;
mod bounds;
mod controls;
mod disk_moves;
mod disks;
mod format;
mod holds;
mod joining;
mod moves;
mod ownership;
mod property;
mod queue;
mod removal;
mod sets;
mod wishes;
mod world;
