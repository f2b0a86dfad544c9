//! A few words of rtnetlink: find an interface, list the bridges, put an interface into a bridge.
//!
//! A netlink socket belongs to the network namespace of the thread that opened it, always. The files under /sys do not:
//! they show the namespace /sys was mounted in, which is another one for a process that was moved by `setns`.
//! Only the kernel answers on these sockets, at once; a receive timeout guards against one that does not.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

const ANSWER_BYTES_MAX: usize = 64 * 1024;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A dump that changes under our hands is asked for again this often.
const DUMP_TRIES_MAX: usize = 5;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const AF_INET6: u16 = 10;
const IFF_UP: u32 = 1;
/// The top bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The eighth figure of `struct rtnl_link_stats64`.
const TX_DROPPED_AT: usize = 7 * size_of::<u64>();

const HEADER_BYTES: usize = 16;
const LINK_BYTES: usize = 16;

/// An interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// "bridge", "veth", "tun"; none for physical ones.
    pub(crate) kind: Option<String>,
    /// Largest frame, without its header, in bytes.
    pub(crate) mtu: u32,
    /// The bridge (or whatever else) it is a port of.
    pub(crate) master: Option<u32>,
    /// Frames that were to leave by it and that the kernel dropped.
    pub(crate) tx_dropped: u64,
}

/// What to change about an interface; what is `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    pub(crate) address: Option<[u8; 6]>,
    pub(crate) mtu: Option<u32>,
    pub(crate) bridge: Option<u32>,
    pub(crate) no_ipv6_address: bool,
    pub(crate) up: bool,
}

/// The interface called `name`, if there is one.
pub(crate) fn link(name: &str) -> io::Result<Option<Link>> {
    let mut request = Request::new(RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, 0, 0);
    request.attribute(IFLA_IFNAME, &zero_terminated(name));
    match request.ask() {
        Ok(answer) => Ok(answer.links.into_iter().find(|link| link.name == name)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every interface there is.
pub(crate) fn links() -> io::Result<Vec<Link>> {
    for _ in 0..DUMP_TRIES_MAX {
        let answer = Request::new(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 0, 0).ask()?;
        if !answer.interrupted {
            return Ok(answer.links);
        }
    }
    Err(io::Error::other("the interfaces changed faster than they could be listed"))
}

/// Changes interface `index`.
pub(crate) fn change(index: u32, change: Change) -> io::Result<()> {
    let flags = if change.up { IFF_UP } else { 0 };
    let mut request = Request::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, index, flags);
    if let Some(address) = change.address {
        request.attribute(IFLA_ADDRESS, &address);
    }
    if let Some(mtu) = change.mtu {
        request.attribute(IFLA_MTU, &mtu.to_ne_bytes());
    }
    if let Some(bridge) = change.bridge {
        request.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
    }
    if change.no_ipv6_address {
        let mode = attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
        request.attribute(IFLA_AF_SPEC, &attribute(AF_INET6, &mode));
    }
    request.ask().map(drop)
}

fn zero_terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// One attribute: its length, its type, its value, padded to four bytes.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("attributes here are a few bytes long");
    let mut bytes = Vec::with_capacity(usize::from(length) + 3);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

struct Request {
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Answer {
    links: Vec<Link>,
    interrupted: bool,
}

impl Request {
    /// Interface `index` (0: none in particular), with `up_flags` to be set.
    fn new(kind: u16, flags: u16, index: u32, up_flags: u32) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]); // the length, once it is known
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]); // sequence and port: one request a socket needs neither
        bytes.extend_from_slice(&[0; 4]); // family and device type: any
        bytes.extend_from_slice(&index.to_ne_bytes());
        bytes.extend_from_slice(&up_flags.to_ne_bytes());
        bytes.extend_from_slice(&up_flags.to_ne_bytes()); // which flags to change: those that are set
        Self { bytes }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&attribute(kind, value));
    }

    /// Sends it and reads the whole answer.
    fn ask(mut self) -> io::Result<Answer> {
        let length = u32::try_from(self.bytes.len()).expect("requests here are a few dozen bytes long");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        send(&socket, &self.bytes, SendFlags::empty())?;
        read_answer(&socket)
    }
}

fn read_answer(socket: &OwnedFd) -> io::Result<Answer> {
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    let mut answer = Answer::default();
    loop {
        let (count, _) = recv(socket, &mut buffer, RecvFlags::empty())?;
        if understand(&buffer[..count], &mut answer)? {
            return Ok(answer);
        }
    }
}

/// Takes one datagram of messages into `answer`; true when the answer is complete.
fn understand(mut bytes: &[u8], answer: &mut Answer) -> io::Result<bool> {
    while bytes.len() >= HEADER_BYTES {
        let length = usize::try_from(u32_at(bytes, 0)).unwrap_or(usize::MAX);
        if length < HEADER_BYTES || length > bytes.len() {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let body = &bytes[HEADER_BYTES..length];
        answer.interrupted |= u16_at(bytes, 6) & NLM_F_DUMP_INTR != 0;
        match u16_at(bytes, 4) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR if body.len() >= 4 => {
                let error = u32_at(body, 0).cast_signed();
                return if error == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(error.saturating_neg())) };
            }
            RTM_NEWLINK if body.len() >= LINK_BYTES => answer.links.extend(parse_link(body)),
            _ => {}
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(false)
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link =
        Link { index: u32_at(body, 4), name: String::new(), kind: None, mtu: 0, master: None, tx_dropped: 0 };
    for (kind, value) in attributes(&body[LINK_BYTES..]) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU if value.len() >= 4 => link.mtu = u32_at(value, 0),
            IFLA_STATS64 => {
                let figure = value.get(TX_DROPPED_AT..).and_then(<[u8]>::first_chunk);
                link.tx_dropped = figure.map_or(0, |figure| u64::from_ne_bytes(*figure));
            }
            IFLA_MASTER if value.len() >= 4 => link.master = Some(u32_at(value, 0)),
            IFLA_LINKINFO => {
                link.kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND).map(|(_, value)| text(value));
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// The attributes in `bytes`, up to the first that does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if bytes.len() < 4 {
            return None;
        }
        let length = usize::from(u16_at(bytes, 0));
        let kind = u16_at(bytes, 2) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some((kind, value))
    })
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_kernel_tells_of_the_loopback_interface() {
        let loopback = link("lo").unwrap().expect("every namespace has lo");

        assert_eq!((loopback.index, loopback.kind, loopback.mtu, loopback.master), (1, None, 65_536, None));
        assert!(links().unwrap().iter().any(|link| link.name == "lo"));
    }

    #[test]
    fn an_interface_that_is_not_there_is_no_error() {
        assert_eq!(link("no-such-thing").unwrap(), None);
    }

    proptest! {
        #[test]
        fn garbage_is_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = understand(&bytes, &mut Answer::default());
        }
    }
}
