//! `pollux volume verify`: what the replicas hold is compared, and how far that is.

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pollux_api::{ErrorKind, VerificationResult, VerificationView, VerifiedReplica, VerifyVolume};
use tokio::time::{self, Instant};

use super::super::{
    Context,
    exit::{Exit, Failure},
    output::{bytes, note, show, table},
    suggest,
};
use crate::api::client::{Client, Tagged};

pub(super) const EXAMPLES: &str = "Examples:
  pollux volume verify data
  pollux volume verify data --repair

The node that writes to the volume compares digests of its replicas in sync, beside its VM, which runs on. A replica differs where it holds
something else than the one whose content counts (the authority in `pollux volume show`). With --repair what differs is copied from
that one, and all is compared again. Which of two is right nobody can tell from them: if the one whose content counts is on the disk
that is broken, remove that one instead (`pollux volume replica remove`) and add another.

Ends with 0 if all are equal, with 10 if they differ, with 7 if not everything could be compared.";

/// One wait for news, in milliseconds.
const WAIT_MS: u64 = 5_000;
/// While nobody can answer, how long to go on asking, in milliseconds.
const BLIND_MS_MAX: u64 = 30_000;
/// Between two questions that nobody answered, in milliseconds.
const RETRY_MS: u64 = 500;
/// Places of a replica that are shown in the table.
const PLACES_SHOWN: usize = 3;

/// What is compared.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The volume's name.
    name: String,
    /// Copy what differs from the replica whose content counts, and compare again.
    #[arg(long)]
    repair: bool,
}

pub(super) async fn run(context: &Context, verb: Verify) -> Result<(), Failure> {
    let client = &context.client;
    let begun = match client.verify_volume(&verb.name, &VerifyVolume { repair: verb.repair }).await {
        Ok(begun) => begun,
        Err(error) => return Err(suggest::for_volume(client, &verb.name, error).await),
    };
    let end = follow(client, begun).await?;
    if let Some(error) = end.error.clone() {
        let what = format!("the replicas of volume {} were not compared: {}", end.volume, error.message);
        return Err(Failure::new(Exit::Failed, what).todo(error.todo));
    }
    show(context.format, &end, told)?;
    judge(&end)
}

/// How the command ends.
fn judge(end: &VerificationView) -> Result<(), Failure> {
    let volume = &end.volume;
    match end.result {
        Some(VerificationResult::Equal) => Ok(()),
        Some(VerificationResult::Different) => {
            let differs: Vec<&str> =
                end.replicas.iter().filter(|it| it.differs_bytes > 0).map(|it| it.place.as_str()).collect();
            let authority = end.replicas.iter().find(|it| it.authority).map(|it| it.place.as_str());
            let authority = authority.unwrap_or("the one whose content counts");
            let do_not = match (end.repair, differs.len()) {
                (false, 1) => "does not",
                (false, _) => "do not",
                (true, 1) => "still does not",
                (true, _) => "still do not",
            };
            let why = format!("{} {do_not} hold what {authority} holds of volume {volume}", differs.join(" and "));
            let remove = format!("`pollux volume replica remove {volume} {authority}`");
            let todo = if end.repair {
                format!("look at the disks of both; if {authority} is the broken one, remove it: {remove}")
            } else {
                format!(
                    "`pollux volume verify {volume} --repair` copies that from {authority}; if that is the broken one, remove it \
                     instead: {remove}"
                )
            };
            Err(Failure::new(Exit::Differs, why).todo(todo))
        }
        Some(VerificationResult::Incomplete) => {
            let why = format!(
                "no difference was found, but {} of volume {volume} could not be compared: the guest writes there all the time",
                bytes(end.left_out_bytes)
            );
            Err(Failure::new(Exit::Failed, why).todo("try again in a calmer moment"))
        }
        Some(VerificationResult::Unknown) | None => {
            let why = format!("the daemon says nothing of what came of comparing the replicas of volume {volume}");
            Err(Failure::new(Exit::Internal, why).todo("use the `pollux` of the same version as the daemon"))
        }
    }
}

fn told(end: &VerificationView) -> String {
    let compared = end.replicas.iter().filter(|it| it.compared).count();
    let repaired = end.replicas.iter().any(|it| it.repaired_bytes > 0);
    let how = match end.result {
        Some(VerificationResult::Equal) if repaired => "hold the same, now that one was repaired",
        Some(VerificationResult::Equal) => "hold the same",
        Some(VerificationResult::Different) => "differ",
        Some(VerificationResult::Incomplete | VerificationResult::Unknown) | None => "were compared in part",
    };
    let mut text = format!("volume {}: {compared} replicas of {} {how}\n\n", end.volume, bytes(end.total_bytes));
    text.push_str(&table(
        ["REPLICA", "COMPARED", "DIFFERS", "REPAIRED", "AUTHORITY", "FIRST PLACES"],
        &[1, 2, 3],
        end.replicas.iter().map(|it| row(end, it)),
    ));
    text
}

fn row(end: &VerificationView, it: &VerifiedReplica) -> [String; 6] {
    let some = |count: u64| if count == 0 { String::new() } else { bytes(count) };
    let mut places: Vec<String> =
        it.places.iter().take(PLACES_SHOWN).map(|place| format!("{}-{}", place.start, place.end)).collect();
    if it.places.len() > PLACES_SHOWN {
        places.push("...".to_owned());
    }
    [
        it.place.clone(),
        if it.compared {
            bytes(end.compared_bytes.saturating_sub(end.left_out_bytes))
        } else {
            "not in sync".to_owned()
        },
        some(it.differs_bytes),
        some(it.repaired_bytes),
        if it.authority { "yes" } else { "" }.to_owned(),
        places.join(" "),
    ]
}

/// Follows one to its end. Ctrl-C leaves it alone.
async fn follow(client: &Client, first: VerificationView) -> Result<VerificationView, Failure> {
    let (volume, node) = (first.volume.clone(), first.node.clone());
    tokio::select! {
        end = until_ended(client, first) => end,
        _ = tokio::signal::ctrl_c() => {
            let why = format!("no longer following: {node} goes on comparing the replicas of volume {volume}");
            Err(Failure::new(Exit::Interrupted, why).todo(format!("`pollux volume show {volume}` tells what came of it")))
        }
    }
}

async fn until_ended(client: &Client, first: VerificationView) -> Result<VerificationView, Failure> {
    let bar = std::io::stderr().is_terminal().then(bar);
    let (mut now, mut heard, mut phase) = (first, Instant::now(), String::new());
    let mut seen: Option<Tagged<VerificationView>> = None;
    while now.ended.is_none() {
        match &bar {
            Some(bar) => {
                bar.set_length(now.total_bytes);
                bar.set_position(now.compared_bytes);
                bar.set_message(line(&now));
            }
            None if now.phase != phase => note(&line(&now)),
            None => {}
        }
        phase.clone_from(&now.phase);
        let which = (now.node.as_str(), now.id.as_str());
        match client.verification_after(which, seen.as_ref(), Duration::from_millis(WAIT_MS)).await {
            Ok(tagged) => {
                heard = Instant::now();
                now = tagged.view.clone();
                seen = Some(tagged);
            }
            Err(error)
                if error.kind == ErrorKind::Unavailable && heard.elapsed() < Duration::from_millis(BLIND_MS_MAX) =>
            {
                time::sleep(Duration::from_millis(RETRY_MS)).await;
            }
            // A daemon that was started again knows nothing of it, and has ended it. Comparing changes nothing that counts.
            Err(error) => {
                let why = format!("{} was comparing the replicas of volume {}: {error}", now.node, now.volume);
                return Err(Failure::new(Exit::Failed, why).todo("ask for the comparison again"));
            }
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(now)
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("[{bar:24}] {wide_msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn line(now: &VerificationView) -> String {
    let differs: u64 = now.replicas.iter().map(|it| it.differs_bytes).sum();
    let found = if differs > 0 { format!(", {} differ so far", bytes(differs)) } else { String::new() };
    let done = match now.compared_bytes {
        0 => String::new(),
        compared => format!("  {} of {}{found}", bytes(compared), bytes(now.total_bytes)),
    };
    let phase = match now.phase.as_str() {
        "comparing-again" => "repaired, comparing once more",
        phase => phase,
    };
    format!("{} on {}: {phase}{done}", now.volume, now.node)
}

#[cfg(test)]
mod tests {
    use pollux_api::ByteRange;

    use super::*;
    use crate::api::fake::storage::{verification, volume};

    fn different(repair: bool) -> VerificationView {
        let mut view = verification(&volume("data", &["n1:fast", "n2:fast", "n3:slow"]), repair);
        view.replicas[2].compared = false;
        let other = &mut view.replicas[1];
        other.places = (0..5).map(|number| ByteRange { start: number << 20, end: (number << 20) + 65_536 }).collect();
        other.differs_bytes = 5 * 65_536;
        (view.compared_bytes, view.result) = (view.total_bytes, Some(VerificationResult::Different));
        view
    }

    #[test]
    fn who_differs_and_where_is_told_with_what_to_do() {
        let view = different(false);
        insta::assert_snapshot!(told(&view), @r"
        volume data: 2 replicas of 10.0 GiB differ

        REPLICA     COMPARED  DIFFERS  REPAIRED  AUTHORITY  FIRST PLACES
        n1:fast     10.0 GiB        -         -  yes        -
        n2:fast     10.0 GiB  320 KiB         -  -          0-65536 1048576-1114112 2097152-2162688 ...
        n3:slow  not in sync        -         -  -          -
        ");
        let failure = judge(&view).unwrap_err();
        assert_eq!(failure.exit, Exit::Differs);
        insta::assert_snapshot!(failure.message, @"n2:fast does not hold what n1:fast holds of volume data");
        assert!(failure.todo.contains("--repair` copies that from n1:fast"), "{}", failure.todo);
    }

    #[test]
    fn what_was_repaired_is_no_failure_and_what_was_not_is() {
        let mut view = different(true);
        assert_eq!(judge(&view).unwrap_err().exit, Exit::Differs);
        let other = &mut view.replicas[1];
        (other.repaired_bytes, other.differs_bytes) = (other.differs_bytes, 0);
        view.result = Some(VerificationResult::Equal);
        insta::assert_snapshot!(told(&view), @r"
        volume data: 2 replicas of 10.0 GiB hold the same, now that one was repaired

        REPLICA     COMPARED  DIFFERS  REPAIRED  AUTHORITY  FIRST PLACES
        n1:fast     10.0 GiB        -         -  yes        -
        n2:fast     10.0 GiB        -   320 KiB  -          0-65536 1048576-1114112 2097152-2162688 ...
        n3:slow  not in sync        -         -  -          -
        ");
        assert!(judge(&view).is_ok());
    }

    #[test]
    fn what_could_not_be_compared_is_said() {
        let mut view = verification(&volume("data", &["n1:fast", "n2:fast"]), false);
        (view.left_out_bytes, view.result) = (65_536, Some(VerificationResult::Incomplete));
        let failure = judge(&view).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("64 KiB") || failure.message.contains("64.0 KiB"), "{}", failure.message);
    }
}
