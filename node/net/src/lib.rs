//! The network part of a VM: its NICs' frames, from QEMU through the gate to a bridge of the host and back.
//!
//! ```text
//!   QEMU --AF_UNIX stream--> FrameReader --> Gate --> Tap --> bridge --> the world
//!        <--AF_UNIX stream-- FrameQueue  <-- Gate <-- Tap <-- bridge <--
//! ```
//!
//! One [`Port`] is one NIC of one QEMU process. The VM's actor starts it when it starts that QEMU, tells it through the
//! [`PortHandle`] which generation its QEMU runs under and which one is committed, and ends it when QEMU ends. Nothing
//! else holds the TAP, so when the port ends the interface is gone.
//!
//! The [`Gate`] is where DESIGN's rules 1 and 4 meet the wire: a frame leaves only if the generation its QEMU runs under
//! is the one that was committed. It is pure, so that every order of events can be tried without a network. Behind it stands
//! the [`Fence`], which is the kernel's and holds also while this process sleeps (rule 5).

mod announce;
mod awake;
mod bridge;
mod counters;
mod fence;
mod frames;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gate;
mod netlink;
mod nftables;
mod port;
mod pump;
mod sys;
mod tap;

pub use awake::suspended;
pub use bridge::{Carried, MTU_DEFAULT, bridges, carried};
pub use counters::Counters;
pub use fence::{Fence, FenceError};
pub use frames::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, FrameError};
pub use gate::{Gate, OpenRefused, Refusal, Verdict};
pub use port::{
    AnnounceError, Drained, GateError, NIC_SOCKET_BYTES, Port, PortConfig, PortEnd, PortHandle, nic_socket_pair,
};
pub use tap::{Tap, TapError, tap_name};
