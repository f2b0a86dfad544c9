//! The one program inside the test guests: a small service that keeps everything in memory, so that whatever a move loses shows.
//!
//! In the small guest `/init` starts it as its only child, in the Debian guest systemd does; it ends when the machine does. The
//! client outside is `pollux-probe`, which keeps a ledger of what was acknowledged and of the gaps between answers.
//!
//! # TCP, port 7000: one line in, one line out, in order
//!
//! | request | answer | meaning |
//! |---|---|---|
//! | `PING` | `PONG` | alive |
//! | `HELLO` | `boot <16 hex digits> counter <n>` | which boot this is, and the counter without raising it |
//! | `INC` | `<n>` | raises the counter by one and tells its new value |
//! | `GET` | `<n>` | the counter |
//! | `PUT <key> <value>` | `OK <version>` | stores the value; the version rises with every `PUT` of any key |
//! | `GET <key>` | `<value>` | the last value stored under the key |
//! | `FILL <MiB> random\|text` | `OK <pages>` | makes the buffer that large and gives every page its contents |
//! | `DIRTY <MiB> <MB/s>` | `OK <pages>` | makes the buffer that large and rewrites its pages at that rate; a rate of 0 stops |
//! | `CHECK` | `OK <pages>` | reads the whole buffer and compares every word with what must be there |
//! | `DISK /dev/vdX <blocks> <per second>` | `OK <blocks>` | writes, flushes and reads back the disk's first blocks; a rate of 0 stops |
//! | `DISK` | `OK writes <n> reads <n> flushes <n> errors <n> longest_ms <n> p99_us <n>` | what came of it; the longest of all, and of the writes what 99 in a hundred did not exceed, since the rate was set |
//! | `DISKCHECK` | `OK <blocks>` | reads all of them and compares every word with what must be there |
//! | `DISKFLUSH` | `OK <sum>` | puts all on stable storage and tells the sum of the blocks' numbers, which never falls |
//! | `DISKADOPT /dev/vdX <blocks>` | `OK <sum>` | after a boot: every block is whole, and what is there is what must be there |
//! | `FLOOD udp\|tcp <address:port> <bytes> <seconds>` | `OK <writes>` | writes that much at a time, as fast as it goes |
//! | `NET` | `OK <packets> <bytes> <packets> <bytes>` | what the card has received, and sent, since the boot |
//! | `RUN <command>` | `EXIT <code> <output>` | a shell carries the command out, as root; answered when it has ended |
//! | `POWEROFF`, `REBOOT`, `PANIC` | `OK` | what it says, right after the answer; in order where systemd runs the machine |
//!
//! Anything else, and a request that cannot be met, is answered by `ERR <reason>`; no stored value begins with `ERR `. A line has
//! at most [`LINE_BYTES_MAX`] bytes; a longer one ends the connection.
//!
//! The output of a command is its last 64 KiB, errors included, in one line: `\n`, `\r` and `\\` stand for a line end, a carriage
//! return and a backslash. A command goes on when the connection that asked for it breaks.
//!
//! # UDP, port 7001
//!
//! Every datagram comes back with ` <count> <16 hex digits>` appended: how many datagrams this boot has answered, this one
//! included, and the boot's id. A guest that woke up with older memory counts backwards; one that booted afresh has another id.
//!
//! # UDP and TCP, port 7002
//!
//! Everything is read and thrown away.
//!
//! # Power button
//!
//! A press of the ACPI power button powers the machine off, as `POWEROFF` does. The kernel tells of it through the event devices.

mod disk;
mod memory;
mod power;
mod service;
mod shell;
mod traffic;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use service::{Answer, Service};

/// Where the line protocol is served.
const TCP_PORT: u16 = 7000;
/// Where datagrams are echoed.
const UDP_PORT: u16 = 7001;
/// Longest request line, its newline included.
const LINE_BYTES_MAX: u64 = 4096;
/// Connections served at the same time; a further one is closed at once.
const CONNECTIONS_MAX: usize = 64;
/// Longest datagram answered whole; what is longer comes back cut.
const DATAGRAM_BYTES_MAX: usize = 1400;

fn main() -> io::Result<()> {
    // `POWEROFF` means it. Outside the guest image this program must not run by mistake.
    if std::env::var_os("POLLUX_GUEST").is_none() {
        eprintln!(
            "pollux-guest: this is the program of the Pollux test guest; it powers its machine off when told to."
        );
        eprintln!("pollux-guest: it runs only inside a guest image (deploy/guest/build, deploy/guest-debian).");
        std::process::exit(64);
    }

    let boot = boot_id()?;
    let service = Arc::new(Service::new(boot));
    let listener = TcpListener::bind(("0.0.0.0", TCP_PORT))?;
    let socket = UdpSocket::bind(("0.0.0.0", UDP_PORT))?;

    traffic::discard()?;
    let buttons = power::watch_buttons();
    thread::spawn(move || echo(&socket, boot));
    let knob = Arc::clone(&service);
    thread::spawn(move || knob.memory().dirty_for_ever());

    println!("pollux-guest ready boot={boot:016x} buttons={buttons}");
    serve(&listener, &service)
}

/// A number that no other boot has.
fn boot_id() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn serve(listener: &TcpListener, service: &Arc<Service>) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        // A client that went away between its knock and our answer is its own affair.
        let Ok((stream, _)) = listener.accept() else { continue };
        if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (service, open) = (Arc::clone(service), Arc::clone(&open));
        thread::Builder::new().stack_size(64 << 10).spawn(move || {
            if let Err(error) = converse(stream, &service) {
                println!("pollux-guest: a connection ended: {error}");
            }
            open.fetch_sub(1, Ordering::SeqCst);
        })?;
    }
}

/// Answers one connection's lines until it ends.
fn converse(stream: TcpStream, service: &Service) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        if line.pop() != Some(b'\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without end"));
        }
        match service.answer(&String::from_utf8_lossy(&line)) {
            Answer::Line(text) => writer.write_all(format!("{text}\n").as_bytes())?,
            Answer::Power(action) => {
                writer.write_all(b"OK\n")?;
                power::carry_out(action)?;
            }
        }
    }
}

/// Echoes datagrams with the count and the boot's id appended.
fn echo(socket: &UdpSocket, boot: u64) {
    let mut answered: u64 = 0;
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        // An unreachable client's ICMP answer comes back as an error here; it concerns none of the others.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        answered += 1;
        let mut answer = buffer[..length].to_vec();
        answer.extend_from_slice(format!(" {answered} {boot:016x}").as_bytes());
        // A datagram that cannot be sent is a lost one, which the client counts.
        let _ = socket.send_to(&answer, client);
    }
}
