//! `pollux vm migrate`: say what a live migration would take, or begin one and follow it.

use std::time::Duration;

use clap::Args;
use pollux_api::{DiskMoveView, ForecastView, MigrateVm, Preflight, PreflightView, Storage, TargetView};

use super::super::{
    Context,
    exit::{Exit, Failure},
    follow::{conclude, follow, short, summary},
    output::{bytes, list, show, span, table},
    rate::{rate, rate_text},
};

pub(crate) const EXAMPLES: &str = "Examples:
  pollux vm migrate web --to n2
  pollux vm migrate web --dry-run                      which nodes could take it, and why not the others
  pollux vm migrate web --to n2 --dry-run              what it would cost, from a sample of half a second
  pollux vm migrate web --to n2 --max-blackout 100ms
  pollux vm migrate web --to n2 --bandwidth 1Gbit --allow-throttle
  pollux vm migrate web --to n2 --with-storage         nothing of its volumes is to stay where it comes from
  pollux vm migrate web --to n2 --warm                 it stands still meanwhile: one pass, for a guest that does not converge
  pollux vm migrate web --to n2 --detach && pollux op list

Its volumes go with it: of each that is not in sync at the target a replica is made there first, while the VM runs, and takes the place
of the one where it comes from. Only when all are there and found equal does the VM itself set out; if it does not arrive, they stay
where they were. A VM that is stopped moves the same way, and stays stopped.

A guest that writes memory faster than the network carries it is not forced: the move fails, says by how much, and the VM runs
on where it was. With --allow-throttle it is slowed down in steps until it fits, and has its speed back when the move ends,
whichever way.

A node copies two VMs at once; further moves wait for their turn in the order in which they were asked for.";

/// How a VM is moved.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Its name.
    name: String,
    /// To which node.
    #[arg(long, value_name = "NODE", required_unless_present = "dry_run")]
    to: Option<String>,
    /// Longest time the guest may stand still.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = blackout)]
    max_blackout: u32,
    /// Most that the copying may send, such as `100MB` or `1Gbit` per second; the last pages of the paused guest do not wait.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bandwidth: Option<u64>,
    /// Slow the guest down, step by step, if it writes faster than its memory can be copied.
    #[arg(long)]
    allow_throttle: bool,
    /// Let the guest stand still from the first byte to the last. It takes longer than the pause of a live move, and ends for certain.
    #[arg(long, conflicts_with_all = ["max_blackout", "allow_throttle"])]
    warm: bool,
    /// Leave no replica of its volumes on the node that it comes from; refused where one would stay.
    #[arg(long, conflicts_with_all = ["compute_only", "from_afar"])]
    with_storage: bool,
    /// Copy no volume; refused unless all of them are in sync at the target.
    #[arg(long, conflicts_with = "from_afar")]
    compute_only: bool,
    /// Copy no volume; what is not at the target is used from where it is, over the network.
    #[arg(long)]
    from_afar: bool,
    /// The pool at the target for volumes that go there. Without it: the one that is called as the one they come from, or the only one.
    #[arg(long, value_name = "POOL", conflicts_with_all = ["compute_only", "from_afar"])]
    pool: Option<String>,
    /// Say what stands in the way and what it would cost, and start nothing.
    #[arg(long, conflicts_with = "detach")]
    dry_run: bool,
    /// Do not follow the move.
    #[arg(long)]
    detach: bool,
}

impl Migrate {
    fn storage(&self) -> Storage {
        match (self.with_storage, self.compute_only, self.from_afar) {
            (true, ..) => Storage::With,
            (_, true, _) => Storage::ComputeOnly,
            (.., true) => Storage::FromAfar,
            (false, false, false) => Storage::Auto,
        }
    }
}

pub(crate) async fn run(context: &Context, verb: Migrate) -> Result<(), Failure> {
    if verb.dry_run {
        return rehearse(context, verb).await;
    }
    let storage = verb.storage();
    let Migrate { name, to, max_blackout, bandwidth, allow_throttle, detach, warm, pool, .. } = verb;
    let to = to.ok_or_else(|| Failure::usage("--to NODE is missing: to which node?"))?;
    let request =
        MigrateVm { to: to.clone(), blackout_ms_max: max_blackout, bandwidth, allow_throttle, warm, storage, pool };
    let begun = match context.client.migrate_vm(&name, &request).await {
        Ok(operation) => operation,
        Err(error) => return Err(super::wrong_name(context, &name, Some(&to), error).await),
    };
    if detach {
        return show(context.format, &summary(&begun), |_| {
            let id = short(&begun.id);
            format!("moving {} from {} to {}: `pollux op watch {id}` follows it\n", begun.vm, begun.from, begun.to)
        });
    }
    let end = follow(&context.client, begun).await?;
    conclude(context.format, &end)
}

/// Shows what a move would meet. Ends as the move itself would be refused, or would fail.
async fn rehearse(context: &Context, verb: Migrate) -> Result<(), Failure> {
    let storage = verb.storage();
    let Migrate { name, to, max_blackout, bandwidth, allow_throttle, warm, pool, .. } = verb;
    let request =
        Preflight { to: to.clone(), blackout_ms_max: max_blackout, bandwidth, allow_throttle, warm, storage, pool };
    let view = match context.client.preflight_vm(&name, &request).await {
        Ok(view) => view,
        Err(error) => return Err(super::wrong_name(context, &name, to.as_deref(), error).await),
    };
    show(context.format, &view, |view| match (&to, view.targets.as_slice()) {
        (Some(_), [target]) => one(view, target, (!warm).then_some(max_blackout)),
        _ => all(view),
    })?;
    let stays = "nothing was started";
    if !view.targets.iter().any(|target| target.fits) {
        let what = match &to {
            Some(to) => format!("VM {name} cannot move to {to}"),
            None => format!("VM {name} cannot move to any node"),
        };
        return Err(Failure::new(Exit::Conflict, what).todo(stays));
    }
    match view.targets.iter().find_map(|target| target.forecast.as_ref()?.why_not.as_ref()) {
        Some(why) => {
            let help = if allow_throttle { "wait until the guest is calmer" } else { "try --allow-throttle" };
            Err(Failure::new(Exit::Failed, format!("the move of VM {name} would not come to an end: {why}")).todo(help))
        }
        None => Ok(()),
    }
}

/// Every node, and all that stands in the way of each.
fn all(view: &PreflightView) -> String {
    let rows = view.targets.iter().flat_map(|target| {
        let fits = if target.fits { "yes" } else { "no" };
        let first = target.obstacles.first().map(|obstacle| obstacle.what.clone()).unwrap_or_default();
        let rest = target.obstacles.iter().skip(1).map(|obstacle| {
            // The same column, without the node again.
            [" ".to_owned(), " ".to_owned(), obstacle.what.clone()]
        });
        std::iter::once([target.node.clone(), fits.to_owned(), first]).chain(rest).collect::<Vec<_>>()
    });
    let place = view.from.as_deref().map_or_else(String::new, |from| format!("VM {} runs on {from}\n\n", view.vm));
    place + &table(["NODE", "FITS", "WHY NOT"], &[], rows)
}

fn one(view: &PreflightView, target: &TargetView, budget_ms: Option<u32>) -> String {
    let from = view.from.as_deref().unwrap_or("nowhere");
    let mut text = format!("VM {} from {from} to {}: nothing is started\n\n", view.vm, target.node);
    if !target.obstacles.is_empty() {
        text.push_str("it cannot move there:\n");
        for obstacle in &target.obstacles {
            text.push_str(&format!("  {}: {}\n", obstacle.about, obstacle.what));
        }
    }
    if let Some(why) = &target.no_forecast {
        text.push_str(&format!("it could move there; what it would cost cannot be told: {why}\n"));
    }
    if let Some(forecast) = &target.forecast {
        text.push_str(&expected(forecast, budget_ms));
    }
    if !target.disks.is_empty() {
        text.push_str(&format!("\n{}", disks(&target.disks)));
    }
    text
}

/// What becomes of its volumes.
fn disks(disks: &[DiskMoveView]) -> String {
    let rows = disks.iter().map(|disk| {
        let what = match (&disk.from, &disk.to) {
            (None, Some(_)) => "is there".to_owned(),
            (None, None) => "is used from where it is".to_owned(),
            (Some(from), _) => {
                let much = disk.copy_bytes.map(|much| format!("{} ", bytes(much))).unwrap_or_default();
                format!("{much}copied first, then gone from {from}")
            }
        };
        [disk.volume.clone(), disk.to.clone().unwrap_or_default(), what]
    });
    table(["VOLUME", "THERE", "WHAT"], &[], rows)
}

fn expected(forecast: &ForecastView, budget_ms: Option<u32>) -> String {
    let mut rows = vec![
        ("memory in use", bytes(forecast.memory_bytes)),
        ("guest writes", rate_text(forecast.dirty_bytes_per_s)),
        ("copied at", rate_text(forecast.copy_bytes_per_s)),
        ("converges", if forecast.converges { "yes".to_owned() } else { "no".to_owned() }),
        ("rounds", forecast.rounds.to_string()),
        ("on the wire", bytes(forecast.wire_bytes)),
        ("takes", span(forecast.total_ms)),
        (
            "blackout",
            match budget_ms {
                Some(budget_ms) => format!("about {} ms, {budget_ms} ms allowed", forecast.blackout_ms),
                None => format!("about {}: it stands still from beginning to end", span(forecast.blackout_ms)),
            },
        ),
    ];
    if forecast.throttle_percent > 0 {
        rows.push(("throttle", format!("the guest would be slowed down by {} %", forecast.throttle_percent)));
    }
    list(rows)
}

/// A time in whole milliseconds, at least one.
fn blackout(text: &str) -> Result<u32, String> {
    let time: Duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 300ms or 1s"))?;
    match u32::try_from(time.as_millis()) {
        Ok(0) => Err("a move needs at least 1ms".to_owned()),
        Ok(ms) => Ok(ms),
        Err(_) => Err("more than 49 days".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forecast_reads_like_one() {
        let forecast = ForecastView {
            converges: true,
            why_not: None,
            rounds: 3,
            total_ms: 2_100,
            wire_bytes: 90 << 20,
            blackout_ms: 41,
            throttle_percent: 40,
            memory_bytes: 300 << 20,
            dirty_bytes_per_s: 12 << 20,
            copy_bytes_per_s: 310 << 20,
        };
        insta::assert_snapshot!(expected(&forecast, Some(300)), @r"
        memory in use  300 MiB
        guest writes   12.0 MiB/s
        copied at      310 MiB/s
        converges      yes
        rounds         3
        on the wire    90.0 MiB
        takes          2s
        blackout       about 41 ms, 300 ms allowed
        throttle       the guest would be slowed down by 40 %
        ");
    }

    #[test]
    fn what_becomes_of_each_volume_has_a_line() {
        let disk = |volume: &str, from: Option<&str>, to: Option<&str>, copy_bytes| DiskMoveView {
            volume: volume.into(),
            from: from.map(Into::into),
            to: to.map(Into::into),
            copy_bytes,
        };
        let all = [
            disk("root", None, Some("n2:fast"), None),
            disk("data", Some("n1:fast"), Some("n2:fast"), Some(3 << 30)),
            disk("archive", None, None, None),
        ];
        insta::assert_snapshot!(disks(&all), @r"
        VOLUME   THERE    WHAT
        root     n2:fast  is there
        data     n2:fast  3.0 GiB copied first, then gone from n1:fast
        archive  -        is used from where it is
        ");
    }

    #[test]
    fn every_reason_has_a_line_and_every_node_a_name() {
        let target = |node: &str, reasons: &[&str]| TargetView {
            node: node.into(),
            fits: reasons.is_empty(),
            obstacles: reasons.iter().map(|what| pollux_api::Obstacle::new("memory", *what)).collect(),
            forecast: None,
            no_forecast: None,
            disks: Vec::new(),
        };
        let targets = vec![target("n2", &[]), target("n3", &["it has no bridge br0", "it is down"])];
        let view = PreflightView { vm: "web".into(), from: Some("n1".into()), targets };
        insta::assert_snapshot!(all(&view), @r"
        VM web runs on n1

        NODE  FITS  WHY NOT
        n2    yes   -
        n3    no    it has no bridge br0
                    it is down
        ");
    }

    #[test]
    fn a_blackout_is_a_time_of_at_least_a_millisecond() {
        assert_eq!(blackout("300ms"), Ok(300));
        assert_eq!(blackout("1s 500ms"), Ok(1500));
        assert!(blackout("0s").is_err());
        assert!(blackout("100us").is_err());
        assert!(blackout("300").unwrap_err().contains("300ms"), "a number without a unit says how to write it");
        assert!(blackout("50days").is_err());
    }
}
