//! What has no safe wrapper: asking the kernel for a TAP, and having tokio watch a file.
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
};

use rustix::{
    fs::OFlags,
    ioctl::{Opcode, Updater, ioctl, opcode},
};
use tokio::io::unix::AsyncFd;

/// The longest interface name Linux has, in bytes, without the terminating zero.
pub(crate) const NAME_BYTES_MAX: usize = 15;

const TUN_DEVICE: &str = "/dev/net/tun";
/// `TUNSETIFF`, as `linux/if_tun.h` writes it: the kernel was given `int` for the type here, and gets a `struct ifreq`.
const TUNSETIFF: Opcode = opcode::write::<std::ffi::c_int>(b'T', 202);
/// Ethernet frames rather than IP packets.
const IFF_TAP: u16 = 0x0002;
/// Frames as they are on the wire, without the four bytes of packet information. (`IFF_VNET_HDR`, the offload header, is
/// left out as well: QEMU's stream netdev carries none.)
const IFF_NO_PI: u16 = 0x1000;
/// Fails when an interface of that name is there, instead of joining it: a port never shares its TAP.
const IFF_TUN_EXCL: u16 = 0x8000;

/// `struct ifreq` as TUNSETIFF uses it: a name, the flags, and the rest of the union.
#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; NAME_BYTES_MAX + 1],
    flags: u16,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<InterfaceRequest>() == 40, "struct ifreq has 40 bytes on every 64-bit Linux");

/// Makes a non-persistent TAP called `name` in the calling thread's network namespace: it is gone when the file closes.
/// The file is non-blocking and not inherited by child processes.
pub(crate) fn make_tap(name: &str) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(TUN_DEVICE)?;
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL, rest: [0; 22] };
    if name.len() > NAME_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads one `struct ifreq` from the address it is given and writes one back to the same place.
    // `InterfaceRequest` has that struct's size, at least its alignment, its first two fields in their places and no
    // padding, every bit pattern is a valid value of it, and the borrow outlives the call.
    let request = unsafe { Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request) };
    // SAFETY: the opcode and its argument belong together (above), and the file is an open tun device.
    unsafe { ioctl(&file, request) }?;
    Ok(file)
}

/// Has the current tokio runtime watch `file`.
pub(crate) fn watch(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` is an open descriptor and says the same number each time it is asked. The `AsyncFd` owns it from
    // here on, and hands out shared references only, through which it can be neither closed nor replaced.
    Ok(unsafe { AsyncFd::register(file) }?)
}
