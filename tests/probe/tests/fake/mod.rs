//! A guest that lives in the test's own process and can be told to fail in the ways that matter.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// The guest's memory: everything a restored older copy would turn back.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    pub(crate) boot: String,
    pub(crate) counter: u64,
    pub(crate) version: u64,
    pub(crate) values: BTreeMap<String, String>,
    pub(crate) datagrams: u64,
}

/// Handle on a fake guest. Its threads end with the test's process.
pub(crate) struct FakeGuest {
    pub(crate) tcp: SocketAddr,
    pub(crate) udp: SocketAddr,
    pub(crate) memory: Arc<Mutex<Memory>>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl FakeGuest {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let guest = Self {
            tcp: listener.local_addr().unwrap(),
            udp: socket.local_addr().unwrap(),
            memory: Arc::new(Mutex::new(Memory { boot: "b0".to_owned(), ..Memory::default() })),
            streams: Arc::default(),
        };
        let (memory, streams) = (Arc::clone(&guest.memory), Arc::clone(&guest.streams));
        thread::spawn(move || {
            for stream in listener.incoming().map(Result::unwrap) {
                streams.lock().unwrap().push(stream.try_clone().unwrap());
                let memory = Arc::clone(&memory);
                thread::spawn(move || serve(stream, &memory));
            }
        });
        let memory = Arc::clone(&guest.memory);
        thread::spawn(move || echo(&socket, &memory));
        guest
    }

    /// Nobody gets an answer for this long.
    pub(crate) fn pause(&self, time: Duration) {
        let memory = self.memory.lock().unwrap();
        thread::sleep(time);
        drop(memory);
    }

    pub(crate) fn break_connections(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            // Some ended already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(mut stream: TcpStream, memory: &Mutex<Memory>) {
    let reader = BufReader::new(stream.try_clone().unwrap());
    for line in reader.lines().map_while(Result::ok) {
        let answer = answer(&mut memory.lock().unwrap(), &line);
        if stream.write_all(format!("{answer}\n").as_bytes()).is_err() {
            return;
        }
    }
}

fn answer(memory: &mut Memory, line: &str) -> String {
    match line.split(' ').collect::<Vec<_>>().as_slice() {
        ["HELLO"] => format!("boot {} counter {}", memory.boot, memory.counter),
        ["INC"] => {
            memory.counter += 1;
            memory.counter.to_string()
        }
        ["GET"] => memory.counter.to_string(),
        ["GET", key] => memory.values.get(*key).cloned().unwrap_or_else(|| "ERR no such key".to_owned()),
        ["PUT", key, value] => {
            memory.version += 1;
            memory.values.insert((*key).to_owned(), (*value).to_owned());
            format!("OK {}", memory.version)
        }
        other => format!("ERR {other:?}"),
    }
}

fn echo(socket: &UdpSocket, memory: &Mutex<Memory>) {
    let mut buffer = [0; 256];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        let mut memory = memory.lock().unwrap();
        memory.datagrams += 1;
        let probe = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let _ = socket.send_to(format!("{probe} {} {}", memory.datagrams, memory.boot).as_bytes(), client);
    }
}
