//! What the requests mean: the counter, the register and the knob on memory, without a socket in sight.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    disk::DiskWork,
    memory::{Contents, DirtyMemory},
    power::PowerAction,
    shell,
    traffic::{self, Kind},
};

/// Keys the register holds at most.
const KEYS_MAX: usize = 65_536;

/// What a request is answered by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// One line.
    Line(String),
    /// `OK`, and then this.
    Power(PowerAction),
}

/// The state behind the line protocol, one per boot.
pub(crate) struct Service {
    boot: u64,
    counter: AtomicU64,
    register: Mutex<Register>,
    memory: DirtyMemory,
    disk: DiskWork,
}

#[derive(Default)]
struct Register {
    version: u64,
    values: BTreeMap<String, String>,
}

impl Service {
    pub(crate) fn new(boot: u64) -> Self {
        Self {
            boot,
            counter: AtomicU64::new(0),
            register: Mutex::default(),
            memory: DirtyMemory::default(),
            disk: DiskWork::default(),
        }
    }

    pub(crate) fn memory(&self) -> &DirtyMemory {
        &self.memory
    }

    /// Carries one request out and says what to answer.
    pub(crate) fn answer(&self, line: &str) -> Answer {
        // Its blanks are the shell's affair.
        if let Some(command) = line.strip_prefix("RUN ") {
            return Answer::Line(shell::run(command).unwrap_or_else(|reason| format!("ERR {reason}")));
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let result = match words.as_slice() {
            ["PING"] => Ok("PONG".to_owned()),
            ["HELLO"] => Ok(format!("boot {:016x} counter {}", self.boot, self.counter.load(Ordering::SeqCst))),
            ["INC"] => Ok((self.counter.fetch_add(1, Ordering::SeqCst) + 1).to_string()),
            ["GET"] => Ok(self.counter.load(Ordering::SeqCst).to_string()),
            ["GET", key] => self.register().values.get(*key).cloned().ok_or_else(|| "no such key".to_owned()),
            ["PUT", key, value] => self.put(key, value),
            ["FILL", size, contents] => self.fill(size, contents),
            ["DIRTY", size, rate] => self.dirty(size, rate),
            ["FLOOD", kind, to, bytes, seconds] => flood(kind, to, bytes, seconds),
            ["NET"] => traffic::counters().map(|[a, b, c, d]| format!("OK {a} {b} {c} {d}")),
            ["CHECK"] => self.memory.check().map(pages),
            ["DISK", device, blocks, rate] => self.work_on(device, blocks, rate),
            ["DISK"] => self.disk.report(),
            ["DISKCHECK"] => self.disk.check(),
            ["DISKFLUSH"] => self.disk.flushed(),
            ["DISKADOPT", device, blocks] => number(blocks).and_then(|blocks| self.disk.adopt(device, blocks)),
            ["POWEROFF"] => return Answer::Power(PowerAction::Off),
            ["REBOOT"] => return Answer::Power(PowerAction::Reboot),
            ["PANIC"] => return Answer::Power(PowerAction::Panic),
            _ => Err("not a request; see the documentation of pollux-guest".to_owned()),
        };
        Answer::Line(result.unwrap_or_else(|reason| format!("ERR {reason}")))
    }

    fn put(&self, key: &str, value: &str) -> Result<String, String> {
        let mut register = self.register();
        if register.values.len() >= KEYS_MAX && !register.values.contains_key(key) {
            return Err(format!("the register holds {KEYS_MAX} keys and is full"));
        }
        if value == "ERR" {
            return Err("this value would read like an error".to_owned());
        }
        register.values.insert(key.to_owned(), value.to_owned());
        register.version += 1;
        Ok(format!("OK {}", register.version))
    }

    fn fill(&self, size: &str, contents: &str) -> Result<String, String> {
        let contents = match contents {
            "random" => Contents::Random,
            "text" => Contents::Text,
            other => return Err(format!("contents are random or text, not {other}")),
        };
        self.memory.fill(number(size)?, contents).map(pages)
    }

    fn dirty(&self, size: &str, rate: &str) -> Result<String, String> {
        self.memory.dirty(number(size)?, number(rate)?).map(pages)
    }

    fn work_on(&self, device: &str, blocks: &str, rate: &str) -> Result<String, String> {
        self.disk.start(device, number(blocks)?, number(rate)? as u64)
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        // No code panics with the lock held, so what is behind a poisoned one is whole.
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn flood(kind: &str, to: &str, bytes: &str, seconds: &str) -> Result<String, String> {
    let kind = match kind {
        "udp" => Kind::Datagrams,
        "tcp" => Kind::Stream,
        other => return Err(format!("a flood is udp or tcp, not {other}")),
    };
    traffic::flood(kind, to, number(bytes)?, number(seconds)?).map(|writes| format!("OK {writes}"))
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| format!("{word} is not a number"))
}

fn pages(count: usize) -> String {
    format!("OK {count}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(service: &Service, request: &str) -> String {
        match service.answer(request) {
            Answer::Line(line) => line,
            Answer::Power(action) => panic!("{request} would have done {action:?}"),
        }
    }

    #[test]
    fn the_counter_rises_by_one_and_is_told_with_the_boot() {
        let service = Service::new(0xabc);
        assert_eq!(line(&service, "PING"), "PONG");
        assert_eq!(line(&service, "HELLO"), "boot 0000000000000abc counter 0");
        assert_eq!(line(&service, "INC"), "1");
        assert_eq!(line(&service, "INC"), "2");
        assert_eq!(line(&service, "GET"), "2");
        assert_eq!(line(&service, "HELLO\r"), "boot 0000000000000abc counter 2");
    }

    #[test]
    fn the_register_gives_back_the_last_value() {
        let service = Service::new(1);
        assert_eq!(line(&service, "GET a"), "ERR no such key");
        assert_eq!(line(&service, "PUT a one"), "OK 1");
        assert_eq!(line(&service, "PUT b two"), "OK 2");
        assert_eq!(line(&service, "PUT a three"), "OK 3");
        assert_eq!(line(&service, "GET a"), "three");
        assert_eq!(line(&service, "GET b"), "two");
    }

    #[test]
    fn the_register_is_bounded_but_known_keys_stay_writable() {
        let service = Service::new(1);
        for key in 0..KEYS_MAX {
            line(&service, &format!("PUT k{key} v"));
        }
        assert!(line(&service, "PUT another v").starts_with("ERR "));
        assert!(line(&service, "PUT k0 w").starts_with("OK "));
    }

    #[test]
    fn a_commands_blanks_reach_its_shell() {
        let service = Service::new(1);
        assert_eq!(line(&service, "RUN printf '%s' 'a  b'"), "EXIT 0 a  b");
        assert!(line(&service, "RUN").starts_with("ERR "));
    }

    #[test]
    fn power_requests_are_told_apart_and_nonsense_is_refused() {
        let service = Service::new(1);
        assert_eq!(service.answer("POWEROFF"), Answer::Power(PowerAction::Off));
        assert_eq!(service.answer("REBOOT"), Answer::Power(PowerAction::Reboot));
        assert_eq!(service.answer("PANIC"), Answer::Power(PowerAction::Panic));
        for nonsense in
            ["", "POWEROFF now", "inc", "PUT a", "PUT a ERR", "DIRTY 1", "DIRTY x 1", "FILL 1 water", "FLOOD ip x 1 1"]
        {
            assert!(line(&service, nonsense).starts_with("ERR "), "{nonsense}");
        }
    }
}
