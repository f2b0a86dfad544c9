//! `pollux vm console`: sit at a guest's serial port, from any node, also while it moves from one to another.
//!
//! ```text
//!   keyboard or pipe --> [keys] --> Attachment --> the owner's daemon --> the guest
//!   screen <------------ what the guest wrote, from the place where this console was
//! ```
//!
//! One attachment after the other: when the VM has left the node, or a daemon was started again, the next one begins at the
//! place where the one before ended. What was typed and had not reached the guest is typed again after a move; after a
//! connection that broke it is given up, for the guest at the other end may be another.

use std::{collections::VecDeque, io::IsTerminal, time::Duration};

use clap::Args;
use pollux_api::{
    ErrorKind,
    console::{Heard, News, Start},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{self, Instant},
};

use crate::api::client::{Attachment, Client};

use super::super::{
    Context,
    exit::{Exit, Failure},
    output::{Format, note, write},
    suggest,
    terminal::{Escape, Raw, keys},
};

pub(crate) const EXAMPLES: &str = "\
Examples:
  pollux vm console web
  echo 'uname -r' | pollux vm console web --last 0        # types the line, prints the answer, ends

Several may be attached to one guest: all see the same, and what each types reaches it; who is not alone is told. The console
stays attached while the VM moves, and while it is off. Keys pressed while the guest stands still wait; while it is off they
are lost. Whoever may use the daemon's socket may use every console.";

/// Between two attempts to attach again, in milliseconds.
const RETRY_MS: u64 = 200;

/// Which console, and how.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// The VM's name.
    name: String,
    /// The key that detaches, such as ^] or ctrl-a, or `none`. Only a terminal has it: what comes through a pipe is all for the
    /// guest.
    #[arg(long, value_name = "KEY", default_value = "^]", value_parser = Escape::parse)]
    escape: Escape,
    /// So many bytes of what the guest wrote before are shown first (at most 65536 are kept).
    #[arg(long, value_name = "BYTES", default_value_t = 2048)]
    last: u64,
    /// After the end of a pipe on standard input: end when the guest has written nothing for so long.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    linger: Duration,
}

pub(crate) async fn run(context: &Context, verb: &Console) -> Result<(), Failure> {
    if context.format != Format::Table {
        return Err(Failure::usage("a console is bytes, neither JSON nor YAML; see `pollux vm log` for those"));
    }
    let fault = |what: &str, error: std::io::Error| Failure::new(Exit::Internal, format!("cannot {what}: {error}"));
    let first = match context.client.console(&verb.name, Start::Last(verb.last)).await {
        Ok(attachment) => attachment,
        Err(error) => return Err(suggest::for_vm(&context.client, &verb.name, error).await),
    };
    let watch = |kind| signal(kind).map_err(|error| fault("watch for signals", error));
    let signals = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
    let [terminate, hangup, interrupt] = signals.map(watch);
    let raw = Raw::enter().map_err(|error| fault("put the terminal into raw mode", error))?;
    let mut seat = Seat {
        client: &context.client,
        name: &verb.name,
        escape: if raw.is_some() { verb.escape } else { Escape::NONE },
        linger: verb.linger,
        keys: keys().map_err(|error| fault("read standard input", error))?,
        signals: [terminate?, hangup?, interrupt?],
        unsure: VecDeque::new(),
        place: None,
        typing: true,
        quiet_since: Instant::now(),
    };
    let ended = seat.sit(first, raw.is_some()).await;
    drop(raw);
    match ended {
        Leave::Detached => note("detached"),
        Leave::Over(why) => note(&format!("the console of {} has ended: {why}", verb.name)),
        Leave::Failed(failure) => return Err(failure),
        Leave::Quiet | Leave::NobodyReads => {}
    }
    Ok(())
}

/// Why a console is left.
enum Leave {
    Detached,
    /// Standard input has ended, and the guest says no more.
    Quiet,
    NobodyReads,
    Over(String),
    Failed(Failure),
}

/// What happened, of all that can.
enum Event {
    Heard(Option<Heard>),
    Typed(Option<Vec<u8>>),
    Signal,
    Quiet,
}

/// Who sits at the console.
struct Seat<'a> {
    client: &'a Client,
    name: &'a str,
    escape: Escape,
    linger: Duration,
    keys: mpsc::Receiver<Vec<u8>>,
    signals: [Signal; 3],
    /// What was typed and is not known to have reached the guest.
    unsure: VecDeque<u8>,
    /// Where the next byte of the guest is expected.
    place: Option<u64>,
    /// Standard input has not ended.
    typing: bool,
    quiet_since: Instant,
}

impl Seat<'_> {
    async fn sit(&mut self, first: Attachment, terminal: bool) -> Leave {
        if terminal {
            let key = self.escape.name().unwrap_or_else(|| "only a signal".to_owned());
            say(&format!("console of {}: {key} detaches", self.name));
        }
        let mut attachment = first;
        loop {
            let again = match self.attached(&mut attachment).await {
                Ok(again) => again,
                Err(leave) => return leave,
            };
            drop(attachment);
            if !again && !self.unsure.is_empty() {
                say(&format!("the connection broke; of what was typed, {} bytes may be lost", self.unsure.len()));
                self.unsure.clear();
            }
            attachment = match self.attach_again().await {
                Ok(attachment) => attachment,
                Err(leave) => return leave,
            };
        }
    }

    /// One attachment, to its end: `true` when it is to be gone on with elsewhere, `false` when it broke.
    async fn attached(&mut self, attachment: &mut Attachment) -> Result<bool, Leave> {
        // Of what was typed before a move, this has not reached the guest.
        let before: Vec<u8> = self.unsure.iter().copied().collect();
        if attachment.type_in(&before).await.is_err() {
            return Ok(false);
        }
        loop {
            match self.next(attachment).await {
                Event::Heard(Some(Heard::Output { at, bytes })) => self.show(at, &bytes)?,
                Event::Heard(Some(Heard::News(news))) => {
                    if let Some(again) = self.news(news)? {
                        return Ok(again);
                    }
                }
                Event::Heard(None) => return Ok(false),
                Event::Typed(typed) => {
                    let typed = self.typed(typed)?;
                    self.unsure.extend(&typed);
                    if attachment.type_in(&typed).await.is_err() {
                        return Ok(false);
                    }
                }
                Event::Signal => return Err(Leave::Detached),
                Event::Quiet => return Err(Leave::Quiet),
            }
        }
    }

    async fn next(&mut self, attachment: &mut Attachment) -> Event {
        let quiet = self.quiet_since + self.linger;
        let [terminate, hangup, interrupt] = &mut self.signals;
        tokio::select! {
            biased;
            _ = terminate.recv() => Event::Signal,
            _ = hangup.recv() => Event::Signal,
            _ = interrupt.recv() => Event::Signal,
            heard = attachment.hear() => Event::Heard(heard),
            typed = self.keys.recv(), if self.typing => Event::Typed(typed),
            () = time::sleep_until(quiet), if !self.typing && self.unsure.is_empty() => Event::Quiet,
        }
    }

    /// Shows what the guest wrote.
    fn show(&mut self, at: u64, bytes: &[u8]) -> Result<(), Leave> {
        if let Some(place) = self.place.filter(|place| *place < at) {
            say(&format!("{} bytes were missed", at - place));
        }
        self.place = Some(at + bytes.len() as u64);
        self.quiet_since = Instant::now();
        match write(bytes) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Leave::NobodyReads),
            Err(failure) => Err(Leave::Failed(failure)),
        }
    }

    /// `Some`: the attachment is over.
    fn news(&mut self, news: News) -> Result<Option<bool>, Leave> {
        match news {
            News::Attached { node, others } => {
                let company = if others == 0 { String::new() } else { format!("; {}", company(others)) };
                say(&format!("attached to {} on {node}{company}", self.name));
            }
            News::Others { others } => say(&company(others)),
            News::Taken { bytes } => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.unsure.len());
                self.unsure.drain(..bytes);
                self.quiet_since = Instant::now();
            }
            News::Deaf { why } => say(&why),
            News::Over { again: true, why } => {
                say(&why);
                return Ok(Some(true));
            }
            News::Over { again: false, why } => return Err(Leave::Over(why)),
            News::Unknown => {}
        }
        Ok(None)
    }

    /// What of the keys is for the guest.
    fn typed(&mut self, typed: Option<Vec<u8>>) -> Result<Vec<u8>, Leave> {
        let Some(typed) = typed else {
            self.typing = false;
            self.quiet_since = Instant::now();
            return Ok(Vec::new());
        };
        match self.escape.cut(&typed) {
            (for_guest, false) => Ok(for_guest.to_vec()),
            // Who presses the key wants to leave now.
            (_, true) => Err(Leave::Detached),
        }
    }

    /// Attaches where it was, as soon as that can be done. Keys other than the one that detaches wait.
    async fn attach_again(&mut self) -> Result<Attachment, Leave> {
        let mut told = false;
        loop {
            let start = self.place.map_or(Start::Last(0), Start::At);
            match self.client.console(self.name, start).await {
                Ok(attachment) => return Ok(attachment),
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    if !std::mem::replace(&mut told, true) {
                        say(&format!("{error}; trying again"));
                    }
                }
                Err(error) => return Err(Leave::Failed(error.into())),
            }
            let [terminate, hangup, interrupt] = &mut self.signals;
            tokio::select! {
                biased;
                _ = terminate.recv() => return Err(Leave::Detached),
                _ = hangup.recv() => return Err(Leave::Detached),
                _ = interrupt.recv() => return Err(Leave::Detached),
                typed = self.keys.recv(), if self.typing => {
                    let typed = self.typed(typed)?;
                    self.unsure.extend(&typed);
                }
                () = time::sleep(Duration::from_millis(RETRY_MS)) => {}
            }
        }
    }
}

fn company(others: u64) -> String {
    match others {
        0 => "nobody else is attached any more".to_owned(),
        1 => "somebody else is attached, sees what you see and can type".to_owned(),
        others => format!("{others} others are attached, see what you see and can type"),
    }
}

/// Says something between what the guest writes, also on a terminal in raw mode.
fn say(text: &str) {
    if std::io::stderr().is_terminal() {
        note(&format!("\r\n[pollux: {text}]\r"));
    } else {
        note(&format!("[pollux: {text}]"));
    }
}
