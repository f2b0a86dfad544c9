//! One conversation with the test guest: a request line out, an answer line in. The protocol is documented in `pollux-guest`.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Longest wait for a connection to be set up; a guest on the same bridge answers within milliseconds or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two attempts to reach a guest that does not answer yet.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A connection to the guest's line protocol. It is one TCP connection for its whole life.
#[derive(Debug)]
pub struct Guest {
    reader: BufReader<TcpStream>,
}

/// What `HELLO` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Which boot of the guest this is.
    pub boot: String,
    /// The guest's counter.
    pub counter: u64,
}

/// What a command in the guest came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; 128 and the signal's number where a signal ended it.
    pub code: i32,
    /// What it wrote, errors included; the last 64 KiB of it.
    pub output: String,
}

impl Guest {
    /// Connects, and waits for every answer at most `patience`.
    pub fn connect(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT.min(patience))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Waits until a guest answers `HELLO` on a connection of its own, at most until `timeout` has passed.
    pub fn wait(address: SocketAddr, timeout: Duration) -> io::Result<Hello> {
        let deadline = Instant::now() + timeout;
        loop {
            match Self::connect(address, CONNECT_TIMEOUT).and_then(|mut guest| guest.hello()) {
                Ok(hello) => return Ok(hello),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(RETRY_PAUSE),
            }
        }
    }

    /// Sends one request and waits for its answer. After an error the connection is of no more use: an answer may still come.
    pub fn ask(&mut self, request: &str) -> io::Result<String> {
        self.reader.get_ref().write_all(format!("{request}\n").as_bytes())?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer)?;
        if answer.pop() != Some('\n') {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the guest closed the connection"));
        }
        Ok(answer)
    }

    /// Has a shell in the guest carry a command out, as root, and waits for its end. A command that fails is no error here.
    ///
    /// After an error the command may still be going on.
    pub fn run(&mut self, command: &str) -> io::Result<Ran> {
        if command.contains(['\n', '\r']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a command is one line"));
        }
        let answer = self.ask(&format!("RUN {command}"))?;
        let ran = answer.strip_prefix("EXIT ").and_then(|rest| rest.split_once(' ')).and_then(|(code, output)| {
            let code = code.parse().ok()?;
            Some(Ran { code, output: unescape(output)? })
        });
        ran.ok_or_else(|| not_understood("RUN", &answer))
    }

    /// Asks which boot this is.
    pub fn hello(&mut self) -> io::Result<Hello> {
        let answer = self.ask("HELLO")?;
        let hello = match answer.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["boot", boot, "counter", counter] => {
                counter.parse().ok().map(|counter| Hello { boot: (*boot).to_owned(), counter })
            }
            _ => None,
        };
        hello.ok_or_else(|| not_understood("HELLO", &answer))
    }
}

pub(crate) fn not_understood(request: &str, answer: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the guest answered {request} by {answer:?}"))
}

/// Undoes what the guest did to make one line of many; `None` for what it does not write.
fn unescape(line: &str) -> Option<String> {
    let (mut text, mut rest) = (String::with_capacity(line.len()), line.chars());
    while let Some(character) = rest.next() {
        text.push(match character {
            '\\' => match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            other => other,
        });
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart_from_backslashes() {
        assert_eq!(unescape(r"one\n\\n two\r\n").as_deref(), Some("one\n\\n two\r\n"));
        assert_eq!(unescape(r"\t"), None);
        assert_eq!(unescape("\\"), None, "cut off");
    }
}
