//! A TAP: the port of a bridge that a guest's frames go through. Non-persistent, so it cannot outlive its owner: when the
//! file closes, by intent or because the process was killed, the interface is gone and the bridge has forgotten it.

use std::{fs::File, io};

use pollux_wire::id::VmId;
use rustix::io::Errno;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    bridge::{BRIDGE, Carried, MTU_DEFAULT, bridges, carried},
    netlink::{self, Change},
    sys::{self, NAME_BYTES_MAX},
};

/// The first bytes of a TAP's own address: locally administered, and the highest there are. A bridge without a fixed
/// address takes the lowest of its ports', so a TAP that comes or goes never changes it.
const ADDRESS_PREFIX: [u8; 3] = [0xfe, b'p', b'x'];

/// A TAP attached to a bridge and up. Frames written to it enter the bridge; frames the bridge sends to it are read.
#[derive(Debug)]
pub struct Tap {
    name: String,
    file: AsyncFd<File>,
}

/// There is no TAP; nothing of it was left behind.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name does not fit.
    #[error("'{name}' cannot name a network interface: 1 to {max} bytes, no '/' and no white space", max = NAME_BYTES_MAX)]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// The bridge is not there.
    #[error(
        "the bridge '{bridge}' is not on this host; make it with `ip link add {bridge} type bridge` and \
         `ip link set {bridge} up`, or name another{}", known(.bridges)
    )]
    NoBridge {
        /// The bridge asked for.
        bridge: String,
        /// Those there are.
        bridges: Vec<String>,
    },
    /// The interface is something else.
    #[error("'{bridge}' is a network interface of this host, but not a bridge{}", known(.bridges))]
    NotABridge {
        /// The interface asked for.
        bridge: String,
        /// The bridges there are.
        bridges: Vec<String>,
    },
    /// Someone else has an interface of that name.
    #[error("the interface '{name}' is there already; end the process that has it, or `ip link delete {name}`")]
    Busy {
        /// The name asked for.
        name: String,
    },
    /// The process may not make interfaces.
    #[error("making the TAP '{name}' needs CAP_NET_ADMIN in this network namespace; run as root")]
    NotPermitted {
        /// The name asked for.
        name: String,
    },
    /// The kernel has no TAPs.
    #[error("making the TAP '{name}' needs /dev/net/tun, which is not there; load it with `modprobe tun`")]
    NoTunDevice {
        /// The name asked for.
        name: String,
    },
    /// The bridge, or a port of it, carries smaller frames only.
    #[error(
        "the bridge '{bridge}' carries frames of {carried} bytes, by the MTU of '{by}', and a network card asks for {mtu}; \
         `ip link set {by} mtu {mtu}` where the network behind it carries them, or make the card's MTU smaller"
    )]
    Narrow {
        /// The bridge asked for.
        bridge: String,
        /// The interface that carries no more.
        by: String,
        /// What it carries, in bytes.
        carried: u32,
        /// The MTU asked for, in bytes.
        mtu: u32,
    },
    /// The kernel does not take such an MTU.
    #[error("the TAP '{name}' cannot have an MTU of {mtu} bytes")]
    BadMtu {
        /// The name asked for.
        name: String,
        /// The MTU asked for, in bytes.
        mtu: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Anything else the kernel refused.
    #[error("{what} failed for the TAP '{name}'")]
    Kernel {
        /// The name asked for.
        name: String,
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn known(bridges: &[String]) -> String {
    if bridges.is_empty() { String::new() } else { format!(" (there are: {})", bridges.join(", ")) }
}

/// The name of the TAP of NIC number `nic` of `vm`: `px12n0`.
///
/// # Errors
/// When the numbers are too long for an interface's name, which is beyond 9,999,999,999 VMs ever made.
pub fn tap_name(vm: VmId, nic: u8) -> Result<String, TapError> {
    let name = format!("px{}n{nic}", vm.0);
    if name.len() > NAME_BYTES_MAX { Err(TapError::BadName { name }) } else { Ok(name) }
}

impl Tap {
    /// Makes the TAP `name` in the calling thread's network namespace, attaches it to `bridge` with an MTU of `mtu` bytes,
    /// and sets it up. A bridge is asked whether it carries that unless it is [`MTU_DEFAULT`], which goes without saying.
    ///
    /// # Errors
    /// See [`TapError`].
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn open(name: &str, bridge: &str, mtu: u32) -> Result<Self, TapError> {
        let valid = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'%';
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(valid) {
            return Err(TapError::BadName { name: name.to_owned() });
        }
        let failed = |what| move |source| TapError::Kernel { name: name.to_owned(), what, source };
        let bridge_index = find_bridge(name, bridge, mtu)?;
        let file = sys::make_tap(name).map_err(|source| refine(name, source))?;
        let made = netlink::link(name)
            .and_then(|link| link.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
            .map_err(failed("finding the new interface"))?;

        // Before it is up: it should not speak for itself, not even once. A kernel without IPv6 has nothing to silence.
        let silence = Change { no_ipv6_address: true, ..Change::default() };
        if let Err(error) = netlink::change(made.index, silence) {
            tracing::debug!(tap = name, %error, "the TAP keeps its IPv6 settings");
        }
        let identity = Change { address: Some(own_address(name)), mtu: Some(mtu), ..Change::default() };
        netlink::change(made.index, identity).map_err(|source| TapError::BadMtu {
            name: name.to_owned(),
            mtu,
            source,
        })?;
        let attach = Change { bridge: Some(bridge_index), up: true, ..Change::default() };
        netlink::change(made.index, attach).map_err(failed("attaching to the bridge"))?;

        let file = sys::watch(file).map_err(failed("watching the file"))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// How many frames for the guest the kernel has dropped because nobody took them; `None`: the interface is gone.
    pub(crate) fn dropped(name: &str) -> Option<u64> {
        netlink::link(name).ok().flatten().map(|link| link.tx_dropped)
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the next frame the bridge sent here, and waits for it.
    ///
    /// # Errors
    /// When the interface is gone.
    pub async fn recv(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.file.async_io(Interest::READABLE, |file| Ok(rustix::io::read(file, &mut *frame)?)).await
    }

    /// Puts one frame onto the bridge, and waits until the kernel takes it.
    ///
    /// # Errors
    /// When the interface is gone or down, or the frame is no frame.
    pub async fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.file.async_io(Interest::WRITABLE, |file| Ok(rustix::io::write(file, frame)?)).await.map(drop)
    }

    /// Waits until there may be a frame to read.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        // The guard is let go without clearing: whoever reads next finds out, and clears then.
        self.file.readable().await.map(drop)
    }

    /// The next frame, if there is one.
    pub(crate) fn try_recv(&self, frame: &mut [u8]) -> io::Result<usize> {
        self.file.try_io(Interest::READABLE, |file| Ok(rustix::io::read(file, &mut *frame)?))
    }

    /// One frame, if the kernel takes it at once. A TAP takes a frame whole or not at all.
    pub(crate) fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        Ok(rustix::io::write(self.file.get_ref(), frame).map(drop)?)
    }
}

/// The bridge's number, where it carries as large frames as are asked of it.
fn find_bridge(name: &str, bridge: &str, mtu: u32) -> Result<u32, TapError> {
    let failed = |source| TapError::Kernel { name: name.to_owned(), what: "looking for the bridge", source };
    let bridge = bridge.to_owned();
    let index = match netlink::link(&bridge).map_err(failed)? {
        Some(link) if link.kind.as_deref() == Some(BRIDGE) => link.index,
        Some(_) => return Err(TapError::NotABridge { bridge, bridges: bridges().map_err(failed)? }),
        None => return Err(TapError::NoBridge { bridge, bridges: bridges().map_err(failed)? }),
    };
    if mtu != MTU_DEFAULT
        && let Some(Carried { mtu: carried, by }) = carried(&bridge).map_err(failed)?
        && carried < mtu
    {
        return Err(TapError::Narrow { bridge, by, carried, mtu });
    }
    Ok(index)
}

fn refine(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::BUSY | Errno::EXIST) => TapError::Busy { name },
        Some(Errno::PERM | Errno::ACCESS) => TapError::NotPermitted { name },
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => TapError::NoTunDevice { name },
        _ => TapError::Kernel { name, what: "making the interface", source },
    }
}

/// An address for the host's side of the TAP. Nothing is ever sent to or from it; it only has to differ between the TAPs
/// of one bridge, and FNV-1a over their names does that well enough.
fn own_address(name: &str) -> [u8; 6] {
    const FNV_OFFSET: u32 = 0x811c_9dc5;
    const FNV_PRIME: u32 = 0x0100_0193;
    let hash = name.bytes().fold(FNV_OFFSET, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(FNV_PRIME));
    let [_, x, y, z] = hash.to_be_bytes();
    let [a, b, c] = ADDRESS_PREFIX;
    [a, b, c, x, y, z]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taps_name_tells_its_vm_and_nic_and_always_fits() {
        assert_eq!(tap_name(VmId(7), 0).unwrap(), "px7n0");
        assert_eq!(tap_name(VmId(9_999_999_999), 15).unwrap(), "px9999999999n15");
        assert!(matches!(tap_name(VmId(u64::MAX), 0), Err(TapError::BadName { .. })));
    }

    #[test]
    fn a_taps_own_address_is_local_unicast_and_its_own() {
        let address = own_address("px1n0");

        assert_eq!(address[0] & 0b11, 0b10, "locally administered, not multicast");
        assert_ne!(address, own_address("px2n0"));
    }
}
