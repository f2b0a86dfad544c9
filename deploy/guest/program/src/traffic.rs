//! As much traffic as this machine makes or takes, for benchmarks of the network between it and the world.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

/// Where everything is read and thrown away, datagrams and streams.
pub(crate) const DISCARD_PORT: u16 = 7002;
/// Largest write.
const BYTES_MAX: usize = 64 << 10;
/// Longest flood, in seconds.
const SECONDS_MAX: u64 = 120;
/// Writes between two looks at the clock.
const BURST: u32 = 32;
/// The guest's one card.
const CARD: &str = "eth0";

/// What is sent.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// One datagram per write.
    Datagrams,
    /// One connection.
    Stream,
}

/// Sends for that many seconds as fast as it goes; how often it wrote.
pub(crate) fn flood(kind: Kind, to: &str, bytes: usize, seconds: usize) -> Result<u64, String> {
    let to: SocketAddr = to.parse().map_err(|_| format!("{to} is no ADDRESS:PORT"))?;
    let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
    if bytes == 0 || bytes > BYTES_MAX || seconds == 0 || seconds > SECONDS_MAX {
        return Err(format!("1 to {BYTES_MAX} bytes for 1 to {SECONDS_MAX} seconds"));
    }
    let (payload, length) = (vec![0x5a; bytes], Duration::from_secs(seconds));
    let sent = match kind {
        Kind::Datagrams => UdpSocket::bind(("0.0.0.0", 0)).and_then(|socket| {
            socket.connect(to)?;
            // A datagram that does not go is a lost one; whoever counts them counts elsewhere.
            Ok(repeat(length, || Ok(socket.send(&payload).is_ok())))
        }),
        Kind::Stream => TcpStream::connect(to).map(|mut stream| {
            // Beyond the last write nothing may be waited for.
            repeat(length, || stream.write_all(&payload).map(|()| true))
        }),
    };
    sent.map_err(|error| format!("{to}: {error}"))
}

fn repeat(length: Duration, mut write: impl FnMut() -> io::Result<bool>) -> u64 {
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < length {
        for _ in 0..BURST {
            match write() {
                Ok(went) => sent += u64::from(went),
                Err(_) => return sent,
            }
        }
    }
    sent
}

/// What the card has received and sent since the boot: packets, bytes, packets, bytes.
pub(crate) fn counters() -> Result<[u64; 4], String> {
    let table = fs::read_to_string("/proc/net/dev").map_err(|error| error.to_string())?;
    parse(&table).ok_or_else(|| format!("there is no {CARD}"))
}

fn parse(table: &str) -> Option<[u64; 4]> {
    let line = table.lines().find_map(|line| line.trim().strip_prefix(CARD)?.strip_prefix(':'))?;
    let figures: Vec<u64> = line.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
    // Received: bytes first, then packets, then six more; sent the same way.
    Some([*figures.get(1)?, *figures.first()?, *figures.get(9)?, *figures.get(8)?])
}

/// Takes whatever comes, for ever.
pub(crate) fn discard() -> io::Result<()> {
    let datagrams = UdpSocket::bind(("0.0.0.0", DISCARD_PORT))?;
    thread::spawn(move || {
        let mut buffer = [0; BYTES_MAX];
        loop {
            // An error here is about somebody else's datagram.
            let _ = datagrams.recv(&mut buffer);
        }
    });
    let streams = TcpListener::bind(("0.0.0.0", DISCARD_PORT))?;
    thread::spawn(move || {
        let mut buffer = vec![0; BYTES_MAX];
        // One after the other: whoever measures sends one.
        while let Ok((mut stream, _)) = streams.accept() {
            while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cards_figures_are_found_in_the_kernels_table() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  \
                     eth0: 100 20 0 0 0 0 0 0 300 40 0 0 0 0 0 0\n";
        assert_eq!(parse(table), Some([20, 100, 40, 300]));
        assert_eq!(parse("  eth1: 1 2"), None);
    }

    #[test]
    fn a_flood_arrives_and_ends() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let to = listener.local_addr().unwrap().to_string();
        let taker = thread::spawn(move || {
            let mut taken = 0;
            let (mut stream, mut buffer) = (listener.accept().unwrap().0, vec![0; BYTES_MAX]);
            while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                taken += bytes as u64;
            }
            taken
        });
        let sent = flood(Kind::Stream, &to, 1000, 1).unwrap();
        assert!(sent > 0);
        assert_eq!(taker.join().unwrap(), sent * 1000);
    }

    #[test]
    fn a_flood_without_bounds_is_refused() {
        for (to, bytes, seconds) in [("nowhere", 1, 1), ("127.0.0.1:9", 0, 1), ("127.0.0.1:9", 1, 100_000)] {
            assert!(flood(Kind::Datagrams, to, bytes, seconds).is_err());
        }
    }
}
