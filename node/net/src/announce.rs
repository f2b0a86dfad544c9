//! Telling the switches where a guest is now.
//!
//! After a switchover the switches still send the guest's frames to its old host, until they see a frame from its address
//! on another port. The guest does not know that it moved, so the net part speaks for it: a RARP request from the guest's
//! MAC, broadcast, which every switch learns from and no host answers. It is the frame QEMU's own self-announce uses.
//! Several are sent, as any one of them may be lost.

use std::time::Duration;

use pollux_wire::id::MacAddr;
use tokio::time::Instant;

/// When the frames of one announcement leave, counted from the moment it was asked for.
pub(crate) const SCHEDULE_MS: [u64; 3] = [0, 50, 200];

/// The shortest frame Ethernet carries, without its checksum.
const FRAME_BYTES: usize = 60;
const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
const HARDWARE_ETHERNET: [u8; 2] = [0, 1];
const PROTOCOL_IPV4: [u8; 2] = [0x08, 0];
const REQUEST_REVERSE: [u8; 2] = [0, 3];

/// One broadcast RARP request in the name of `mac`.
pub(crate) fn rarp(mac: MacAddr) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    let parts: [&[u8]; 12] = [
        &[0xff; 6],
        &mac.0,
        &ETHERTYPE_RARP,
        &HARDWARE_ETHERNET,
        &PROTOCOL_IPV4,
        &[6, 4], // lengths of a hardware and of a protocol address
        &REQUEST_REVERSE,
        &mac.0,  // sender: this guest ...
        &[0; 4], // ... whose IP address is nobody's business
        &mac.0,  // target: itself
        &[0; 4],
        &[0; 18], // padding
    ];
    let mut rest = frame.as_mut_slice();
    for part in parts {
        let (here, after) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = after;
    }
    assert!(rest.is_empty(), "the parts of a RARP frame add up to its length");
    frame
}

/// An announcement under way: which address, since when, how many frames are out.
#[derive(Debug)]
pub(crate) struct Announcement {
    mac: MacAddr,
    since: Instant,
    sent: usize,
}

impl Announcement {
    pub(crate) fn new(mac: MacAddr, now: Instant) -> Self {
        Self { mac, since: now, sent: 0 }
    }

    pub(crate) fn frame(&self) -> [u8; FRAME_BYTES] {
        rarp(self.mac)
    }

    /// When the next frame is due; `None` when all are out.
    pub(crate) fn due(&self) -> Option<Instant> {
        SCHEDULE_MS.get(self.sent).map(|after_ms| self.since + Duration::from_millis(*after_ms))
    }

    /// The frame that was due is out (or was refused: it is not tried twice).
    pub(crate) fn step(&mut self) {
        self.sent += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_a_rarp_request_from_and_for_the_guest() {
        let frame = rarp(MacAddr([0x52, 0x54, 0, 1, 2, 3]));

        let expected =
            "ffffffffffff 525400010203 8035 0001 0800 06 04 0003 525400010203 00000000 525400010203 00000000";
        let hex: String = frame[..42].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected.replace(' ', ""));
        assert!(frame[42..].iter().all(|byte| *byte == 0));
        assert_eq!(frame.len(), 60);
    }

    #[test]
    fn an_announcement_is_three_frames_and_then_over() {
        let since = Instant::now();
        let mut announcement = Announcement::new(MacAddr([2; 6]), since);

        let mut due_ms = Vec::new();
        while let Some(due) = announcement.due() {
            due_ms.push((due - since).as_millis());
            announcement.step();
        }

        assert_eq!(due_ms, [0, 50, 200]);
    }
}
