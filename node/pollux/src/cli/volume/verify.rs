//! `pollux volume verify`: what the replicas hold is compared, and how far that is.

use std::time::Duration;

use clap::Args;
use pollux_api::{ApiError, VerificationResult, VerificationView, VerifiedReplica, VerifyVolume};

use super::{
    super::{
        Context,
        exit::{Exit, Failure},
        looking::unless_interrupted,
        output::{bytes, show, table},
        suggest,
    },
    following::{Work, until_over},
};
use crate::api::client::{Client, Tagged};

pub(super) const EXAMPLES: &str = "Examples:
  pollux volume verify data
  pollux volume verify data --repair
  pollux volume verify data --detach && pollux volume show data

The node that writes to the volume compares digests of its replicas in sync, beside its VM, which runs on. A replica differs where it holds
something else than the one whose content counts (the authority in `pollux volume show`). With --repair what differs is copied from
that one, and all is compared again. Which of two is right nobody can tell from them: if the one whose content counts is on the disk
that is broken, remove that one instead (`pollux volume replica remove`) and add another.

Ends with 0 if all are equal, with 10 if they differ, with 7 if not everything could be compared.";

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
    /// Do not follow it. It goes on without whoever asked, and `pollux volume show` tells what came of it.
    #[arg(long)]
    detach: bool,
}

pub(super) async fn run(context: &Context, verb: Verify) -> Result<(), Failure> {
    let client = &context.client;
    let begun = match client.verify_volume(&verb.name, &VerifyVolume { repair: verb.repair }).await {
        Ok(begun) => begun,
        Err(error) => return Err(suggest::for_volume(client, &verb.name, error).await),
    };
    if verb.detach {
        return show(context.format, &begun, |begun| {
            let VerificationView { node, volume, .. } = begun;
            format!(
                "{node} compares the replicas of volume {volume}: `pollux volume show {volume}` tells what came of it\n"
            )
        });
    }
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
                "no difference was found, but {} of volume {volume} could not be compared: a replica did not tell in time what \
                 it holds there",
                bytes(end.left_out_bytes)
            );
            let todo =
                "look at the disks and the links of its replicas' hosts, or try again when less is asked of them";
            Err(Failure::new(Exit::Failed, why).todo(todo))
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
    let interrupted = || {
        let why =
            format!("no longer following: {node} goes on comparing the replicas of volume {volume}, beside its VM");
        Failure::new(Exit::Interrupted, why).todo(format!("`pollux volume show {volume}` tells what came of it"))
    };
    unless_interrupted(until_over(client, first), interrupted).await
}

impl Work for VerificationView {
    fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    fn phase(&self) -> &str {
        &self.phase
    }

    fn done(&self) -> (u64, u64) {
        (self.compared_bytes, self.total_bytes)
    }

    fn line(&self) -> String {
        let differs: u64 = self.replicas.iter().map(|it| it.differs_bytes).sum();
        let found = if differs > 0 { format!(", {} differ so far", bytes(differs)) } else { String::new() };
        let done = match self.compared_bytes {
            0 => String::new(),
            compared => format!("  {} of {}{found}", bytes(compared), bytes(self.total_bytes)),
        };
        let phase = match self.phase.as_str() {
            "comparing-again" => "repaired, comparing once more",
            phase => phase,
        };
        format!("{} on {}: {phase}{done}", self.volume, self.node)
    }

    async fn look(
        &self,
        client: &Client,
        seen: Option<&Tagged<Self>>,
        wait: Duration,
    ) -> Result<Tagged<Self>, ApiError> {
        client.verification_after((self.node.as_str(), self.id.as_str()), seen, wait).await
    }

    /// A daemon that was started again knows nothing of it, and has ended it. Comparing changes nothing that counts.
    fn lost(&self, error: &ApiError) -> Failure {
        let why = format!("{} was comparing the replicas of volume {}: {error}", self.node, self.volume);
        Failure::new(Exit::Failed, why).todo("ask for the comparison again")
    }
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
