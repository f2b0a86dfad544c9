//! A few words of nf_tables: a table with a chain at one interface's ingress, sets whose elements expire, and transactions
//! that happen whole or not at all. Everything else about nf_tables is somebody else's.
//!
//! The table belongs to the socket that made it (`NFT_TABLE_F_OWNER`): nobody else can change it, `nft flush ruleset` leaves
//! it alone, and the kernel removes it when the socket closes, however its process ends. The kernel carries a transaction
//! out while it is being sent, so the answer is there when `send` returns.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
        sockopt::set_socket_recv_buffer_size,
    },
};

use crate::netlink::attribute;

/// What the kernel answers to one transaction fits this, in bytes: each answer repeats its message.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
/// An attribute that holds attributes.
const NESTED: u16 = 0x8000;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
const NEW_SET: u16 = (SUBSYSTEM << 8) | 9;
const NEW_ELEMENT: u16 = (SUBSYSTEM << 8) | 12;
const DELETE_ELEMENT: u16 = (SUBSYSTEM << 8) | 14;
/// Deletes what is there and does not mind when nothing is (Linux 6.3).
const DESTROY_ELEMENT: u16 = (SUBSYSTEM << 8) | 30;

const FAMILY_NONE: u8 = 0;
const FAMILY_NETDEV: u8 = 5;
const TABLE_OWNED: u32 = 2;
const HOOK_INGRESS: u32 = 0;
const POLICY_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const META_IIF: u32 = 4;
const SET_EXPIRES: u32 = 0x10;
/// How `nft` shows a key: as an interface, as a mark.
const SHOWN_AS_INTERFACE: u32 = 20;
const SHOWN_AS_MARK: u32 = 19;
/// Elements of one set: far more than there are ever questions open.
const ELEMENTS_MAX: u32 = 1024;

/// One socket, and with it the tables it made.
#[derive(Debug)]
pub(crate) struct Nftables {
    socket: OwnedFd,
    /// Held from a question to its answers.
    one_by_one: Mutex<()>,
}

/// What the keys of a set are, for people who look.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Keys {
    Interfaces,
    Marks,
}

/// Several changes that happen together or not at all.
pub(crate) struct Transaction<'a> {
    table: &'a str,
    bytes: Vec<u8>,
    changes: u32,
}

impl Nftables {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let protocol = Some(netlink::NETFILTER);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        set_socket_recv_buffer_size(&socket, ANSWER_BYTES_MAX)?;
        Ok(Self { socket, one_by_one: Mutex::new(()) })
    }

    /// Has the kernel carry it out.
    ///
    /// # Errors
    /// The first thing the kernel refused; nothing has changed then.
    pub(crate) fn commit(&self, transaction: Transaction<'_>) -> io::Result<()> {
        let (bytes, changes) = transaction.finish();
        // The answers on the socket are those of this transaction.
        let _one = self.one_by_one.lock().unwrap_or_else(PoisonError::into_inner);
        send(&self.socket, &bytes, SendFlags::empty())?;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        let (mut agreed, mut refused) = (0, None);
        loop {
            match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((count, _)) => read_answers(&buffer[..count], &mut agreed, &mut refused)?,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        match refused {
            Some(error) => Err(error),
            None if agreed == changes => Ok(()),
            None => Err(io::Error::other(format!("the kernel answered {agreed} of {changes} changes"))),
        }
    }
}

fn read_answers(mut bytes: &[u8], agreed: &mut u32, refused: &mut Option<io::Error>) -> io::Result<()> {
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = bytes.get(16..length).ok_or(io::ErrorKind::InvalidData)?;
        if let (NLMSG_ERROR, Some((error, _))) = (kind, body.split_first_chunk()) {
            match i32::from_ne_bytes(*error) {
                0 => *agreed += 1,
                error => drop(refused.get_or_insert_with(|| io::Error::from_raw_os_error(error.saturating_neg()))),
            }
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(())
}

impl<'a> Transaction<'a> {
    /// About `table`, with nothing in it yet.
    pub(crate) fn about(table: &'a str) -> Self {
        let mut transaction = Self { table, bytes: Vec::with_capacity(1024), changes: 0 };
        transaction.message(BATCH_BEGIN, NLM_F_REQUEST, FAMILY_NONE, SUBSYSTEM, &[]);
        transaction
    }

    /// Makes the table, for this socket alone.
    pub(crate) fn table(self) -> Self {
        let parts = [text(1, self.table), number(2, TABLE_OWNED)].concat();
        self.change(NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL, &parts)
    }

    /// Makes a set of four-byte keys that expire.
    pub(crate) fn set(self, name: &str, id: u32, keys: Keys) -> Self {
        let shown = match keys {
            Keys::Interfaces => SHOWN_AS_INTERFACE,
            Keys::Marks => SHOWN_AS_MARK,
        };
        let parts = [
            text(1, self.table),
            text(2, name),
            number(3, SET_EXPIRES),
            number(4, shown),
            number(5, 4),
            nested(9, &number(1, ELEMENTS_MAX)),
            number(10, id),
        ];
        self.change(NEW_SET, NLM_F_CREATE | NLM_F_EXCL, &parts.concat())
    }

    /// Makes a chain for what comes in by `interface`: what no rule accepts is dropped.
    pub(crate) fn ingress(self, name: &str, interface: &str) -> Self {
        let hook = [number(1, HOOK_INGRESS), number(2, 0), text(3, interface)].concat();
        let parts =
            [text(1, self.table), text(3, name), nested(4, &hook), number(5, POLICY_DROP), text(7, "filter")].concat();
        self.change(NEW_CHAIN, NLM_F_CREATE | NLM_F_EXCL, &parts)
    }

    /// Adds the rule that accepts what comes from an interface in `set`.
    pub(crate) fn accept_from(self, chain: &str, set: &str, set_id: u32) -> Self {
        let load = [number(1, REGISTER_1), number(2, META_IIF)].concat();
        let lookup = [text(1, set), number(2, REGISTER_1), number(4, set_id)].concat();
        let verdict = nested(2, &nested(2, &number(1, VERDICT_ACCEPT)));
        let accept = [number(1, REGISTER_VERDICT), verdict].concat();
        let words = [expression("meta", &load), expression("lookup", &lookup), expression("immediate", &accept)];
        self.rule(chain, &words.concat())
    }

    /// Adds a rule that counts what comes so far and decides nothing.
    pub(crate) fn count(self, chain: &str) -> Self {
        self.rule(chain, &expression("counter", &[]))
    }

    /// Adds `key`, for `time` from now.
    pub(crate) fn add(self, set: &str, key: u32, time: Duration) -> Self {
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let timeout = attribute(4, &time_ms.to_be_bytes());
        self.element(NEW_ELEMENT, NLM_F_CREATE | NLM_F_EXCL, set, key, &timeout)
    }

    /// Removes `key`. The whole transaction is refused (`ENOENT`) when it is not there, or has expired.
    pub(crate) fn take(self, set: &str, key: u32) -> Self {
        self.element(DELETE_ELEMENT, 0, set, key, &[])
    }

    /// Removes `key` if it is there.
    pub(crate) fn clear(self, set: &str, key: u32) -> Self {
        self.element(DESTROY_ELEMENT, 0, set, key, &[])
    }

    /// Removes every key.
    pub(crate) fn flush(self, set: &str) -> Self {
        let parts = [text(1, self.table), text(2, set)].concat();
        self.change(DELETE_ELEMENT, 0, &parts)
    }

    fn element(self, kind: u16, flags: u16, set: &str, key: u32, rest: &[u8]) -> Self {
        let element = [&nested(1, &attribute(1, &key.to_ne_bytes())), rest].concat();
        let parts = [text(1, self.table), text(2, set), nested(3, &nested(1, &element))].concat();
        self.change(kind, flags, &parts)
    }

    fn rule(self, chain: &str, expressions: &[u8]) -> Self {
        let parts = [text(1, self.table), text(2, chain), nested(4, expressions)].concat();
        self.change(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &parts)
    }

    fn change(mut self, kind: u16, flags: u16, parts: &[u8]) -> Self {
        self.changes += 1;
        self.message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, FAMILY_NETDEV, 0, parts);
        self
    }

    /// One message: netlink's header, netfilter's, attributes.
    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, parts: &[u8]) {
        let length = u32::try_from(20 + parts.len()).expect("messages here are some hundred bytes long");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.changes.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        self.bytes.extend_from_slice(parts);
    }

    fn finish(mut self) -> (Vec<u8>, u32) {
        self.message(BATCH_END, NLM_F_REQUEST, FAMILY_NONE, SUBSYSTEM, &[]);
        (self.bytes, self.changes)
    }
}

fn expression(name: &str, parts: &[u8]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, parts)].concat())
}

fn nested(kind: u16, parts: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, parts)
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

/// Numbers are big-endian here, keys alone are not.
fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn garbage_is_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = read_answers(&bytes, &mut 0, &mut None);
        }
    }
}
