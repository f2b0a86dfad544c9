//! The bridges of this host: which there are, and how large frames each carries.
//!
//! A frame passes a bridge when the port it leaves by takes it: one that is too large is dropped there without a word. The bridge's
//! own MTU is what the host itself may send, and, where nobody has set it, the smallest of its ports'. So the smallest of all
//! of them is what can be relied on.

use std::{io, iter};

use crate::netlink;

/// The kind of an interface that is a bridge, as the kernel calls it.
pub(crate) const BRIDGE: &str = "bridge";
/// The kind of an interface that is a TAP.
const TAP: &str = "tun";
/// Ethernet's own MTU, in bytes.
pub const MTU_DEFAULT: u32 = 1_500;

/// How large frames a bridge carries, and what sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The largest, without its header, in bytes.
    pub mtu: u32,
    /// The interface that takes no larger ones: a port, or the bridge itself.
    pub by: String,
}

/// The names of the bridges in the calling thread's network namespace, sorted.
///
/// # Errors
/// When the kernel does not answer.
pub fn bridges() -> io::Result<Vec<String>> {
    let mut names: Vec<String> = netlink::links()?
        .into_iter()
        .filter(|link| link.kind.as_deref() == Some(BRIDGE))
        .map(|link| link.name)
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// How large frames `bridge` carries; `None`: there is no such bridge in the calling thread's network namespace.
///
/// # Errors
/// When the kernel does not answer.
pub fn carried(bridge: &str) -> io::Result<Option<Carried>> {
    let links = netlink::links()?;
    let Some(itself) = links.iter().find(|link| link.name == bridge && link.kind.as_deref() == Some(BRIDGE)) else {
        return Ok(None);
    };
    // Not the TAPs: each is a guest's own, and says what that guest takes. Ports go first: a bridge whose MTU nobody has set
    // follows them.
    let of_it = |link: &&netlink::Link| link.master == Some(itself.index) && link.kind.as_deref() != Some(TAP);
    let narrowest = links.iter().filter(of_it).chain(iter::once(itself)).min_by_key(|link| link.mtu);
    Ok(narrowest.map(|link| Carried { mtu: link.mtu, by: link.name.clone() }))
}
