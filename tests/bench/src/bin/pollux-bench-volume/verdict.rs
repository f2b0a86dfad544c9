//! What is told at the end: rows, and which targets are met.

use pollux_bench::{Row, Spread};

use crate::{
    case::{Case, Metric, Seen},
    server::{Kind, Server},
};

/// One figure.
pub(crate) type Taken = (Server, Case, Seen);

fn median(taken: &[Taken], server: Server, case: Case, metric: Metric) -> Option<f64> {
    let of = taken.iter().filter(|it| it.0 == server && it.1 == case);
    Spread::of(of.map(|it| it.2.figure(metric))).map(|spread| spread.median)
}

/// Whom each of ours is compared with, and what such a row's case is called after the case itself.
fn comparisons(servers: &[Server]) -> Vec<(Server, Server, &'static str)> {
    let bare = servers.iter().find(|it| it.kind() == Kind::Bare).copied();
    let mut all = Vec::new();
    if let Some(bare) = bare {
        let others = servers.iter().filter(|it| **it != bare && matches!(it.kind(), Kind::Peer | Kind::Bare));
        all.extend(others.map(|other| (bare, *other, "")));
        all.push((Server::Replicas1, bare, "-replicas1"));
    }
    let than = |ours, suffix, peers: &[Server]| peers.iter().map(|peer| (ours, *peer, suffix)).collect::<Vec<_>>();
    let raw = [Server::RawDisk, Server::RawLink];
    all.extend(than(Server::Replicas2, "-replicas2", &[Server::Replicas1, Server::QemuMirror]));
    all.extend(than(Server::Replicas2, "-replicas2", &raw));
    all.extend(than(Server::Replicas3, "-replicas3", &[Server::Replicas2]));
    all
}

/// Each of ours beside whom it is compared with: medians.
pub(crate) fn rows(taken: &[Taken], cases: &[Case], servers: &[Server]) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in cases {
        for (ours, peer, suffix) in comparisons(servers) {
            for metric in case.metrics() {
                let both = median(taken, ours, *case, metric).zip(median(taken, peer, *case, metric));
                let row =
                    |(ours, other)| Row::of(format!("{}{suffix}", case.name), metric.name(), ours, other, peer.name());
                rows.extend(both.map(row));
            }
        }
    }
    rows
}

/// A line for each target: one replica at least as fast as `qemu-nbd`; two at least 1.2 x QEMU's mirror, and of what is written one
/// after the other at least 0.8 x the slower of disk and link.
pub(crate) fn verdicts(taken: &[Taken], cases: &[Case]) -> Vec<String> {
    let mut lines = Vec::new();
    for case in cases {
        let metric = case.metrics()[0];
        let of = |server| median(taken, server, *case, metric);
        let slower = of(Server::RawDisk).zip(of(Server::RawLink)).filter(|_| !case.small).map(|(disk, link)| {
            if disk <= link {
                (disk, "the disk, slower than the link")
            } else {
                (link, "the link, slower than the disk")
            }
        });
        let targets = [
            (Server::Pollux, of(Server::QemuNbd).map(|it| (it, Server::QemuNbd.name())), 1.0),
            (Server::Replicas2, slower, 0.8),
            (Server::Replicas2, of(Server::QemuMirror).map(|it| (it, Server::QemuMirror.name())), 1.2),
        ];
        for (ours, peer, least) in targets {
            let Some((is, (peer, name))) = of(ours).zip(peer) else { continue };
            let (ratio, what) = (is / peer, format!("{} {}", metric.name(), ours.name()));
            let met = if ratio >= least { "met   " } else { "MISSED" };
            let case = case.name;
            lines.push(format!(
                "{met}  {case:18} {what:21} {is:.0}, {ratio:.2} x the {peer:.0} of {name}; at least {least:.1} is aimed at"
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CASES;

    fn taken(server: Server, case: Case, figure: f64) -> Taken {
        (server, case, Seen { iops: figure, mb_per_s: figure, p99_us: 100.0 })
    }

    #[test]
    fn two_replicas_are_judged_by_the_slower_of_disk_and_link_and_by_the_mirror_of_qemu() {
        let case = CASES[5];
        let all = |disk, link, mirror| {
            [
                taken(Server::Replicas2, case, 800.0),
                taken(Server::RawDisk, case, disk),
                taken(Server::RawLink, case, link),
                taken(Server::QemuMirror, case, mirror),
            ]
        };
        let verdicts = |disk, link, mirror| verdicts(&all(disk, link, mirror), &[case]);
        let met = |lines: Vec<String>| lines.iter().map(|line| line.starts_with("met")).collect::<Vec<_>>();
        assert_eq!(met(verdicts(1000.0, 5000.0, 600.0)), [true, true]);
        assert_eq!(met(verdicts(5000.0, 1000.0, 700.0)), [true, false]);
        assert_eq!(met(verdicts(1001.0, 1001.0, 600.0)), [false, true]);
        assert!(verdicts(1000.0, 5000.0, 1.0)[0].contains("the disk"));
        assert!(verdicts(5000.0, 1000.0, 1.0)[0].contains("the link"));
    }

    #[test]
    fn who_was_not_measured_is_not_judged_and_has_no_row() {
        let case = CASES[1];
        let one = [taken(Server::Pollux, case, 10.0), taken(Server::Replicas1, case, 9.0)];
        assert!(verdicts(&one, &[case]).is_empty());
        let rows = rows(&one, &[case], &[Server::Pollux, Server::Replicas1]);
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert_eq!((&*rows[0].case, rows[0].ratio, rows[0].peer_name), ("rand-write-4k-qd16-replicas1", 0.9, "pollux"));
    }
}
