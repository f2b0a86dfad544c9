//! Volumes as tables.

use pollux_api::{ComparedView, ReplicaState, ReplicaView, VolumeHealth, VolumeView};

use super::super::{
    follow::short,
    output::{age, bytes, list, moment, table},
};

pub(super) fn health(health: VolumeHealth) -> &'static str {
    match health {
        VolumeHealth::Making => "being made",
        VolumeHealth::Ready => "ready",
        VolumeHealth::Degraded => "degraded",
        VolumeHealth::Failed => "failed",
        VolumeHealth::Unknown => "unknown",
    }
}

fn in_sync(volume: &VolumeView) -> usize {
    volume.replicas.iter().filter(|replica| replica.state == ReplicaState::Insync).count()
}

/// The VM that has it, and what for if it is no disk.
fn user(volume: &VolumeView) -> String {
    let vm = volume.vm.as_deref().unwrap_or_default();
    if volume.firmware { format!("{vm} (firmware)") } else { vm.to_owned() }
}

/// All volumes, one a line.
pub(super) fn many(volumes: &[VolumeView]) -> String {
    table(
        ["NAME", "STATE", "SIZE", "VM", "WRITER", "IN SYNC", "REPLICAS", "MOVE"],
        &[2],
        volumes.iter().map(|volume| {
            let places: Vec<&str> = volume.replicas.iter().map(|replica| replica.place.as_str()).collect();
            [
                volume.name.clone(),
                health(volume.health).to_owned(),
                bytes(volume.size_bytes),
                user(volume),
                volume.writer.as_ref().map(|writer| writer.node.clone()).unwrap_or_default(),
                format!("{} of {}", in_sync(volume), volume.replicas.len()),
                places.join(" "),
                volume.moving.as_ref().map(|moving| moving.phase.clone()).unwrap_or_default(),
            ]
        }),
    )
}

/// All about one.
pub(super) fn single(volume: &VolumeView, now: u64) -> String {
    let set: Vec<&str> = volume.replicas.iter().filter(|it| it.in_sync).map(|it| it.place.as_str()).collect();
    let mut rows = vec![
        ("name", volume.name.clone()),
        ("id", volume.id.to_string()),
        ("state", health(volume.health).to_owned()),
        ("size", bytes(volume.size_bytes)),
        ("vm", user(volume)),
        (
            "writer",
            volume.writer.as_ref().map(|writer| format!("{}, {}", writer.node, writer.doing)).unwrap_or_default(),
        ),
        ("generation", volume.generation.to_string()),
        ("in-sync set", format!("{} (version {})", set.join(", "), volume.version)),
    ];
    if let Some(open) = volume.open_requests {
        rows.push(("open requests", open.to_string()));
    }
    if volume.incomplete {
        rows.push((
            "content",
            "half of an import: while nobody is importing it, delete it and import again".to_owned(),
        ));
    }
    if let Some(trouble) = &volume.trouble {
        rows.push(("trouble", trouble.clone()));
    }
    if let Some(moving) = &volume.moving {
        let (id, moving) = (short(&moving.operation), moving);
        rows.push(("move", format!("{} -> {}, {} (operation {id})", moving.from, moving.to, moving.phase)));
    }
    if let Some(compared) = &volume.compared {
        rows.push(("compared", told(compared, now)));
    }
    rows.push(("created", format!("{} ({} ago)", moment(volume.created), age(now, volume.created))));
    let mut text = list(rows);
    text.push('\n');
    text.push_str(&table(
        ["REPLICA", "STATE", "LACKS", "AUTHORITY", "WHY"],
        &[2],
        volume.replicas.iter().map(|replica| {
            [
                replica.place.clone(),
                state(replica).to_owned(),
                replica.lacks_bytes.map(bytes).unwrap_or_default(),
                if replica.authority { "yes" } else { "" }.to_owned(),
                replica.why.clone().unwrap_or_default(),
            ]
        }),
    ));
    text
}

/// What came of the last comparison.
fn told(compared: &ComparedView, now: u64) -> String {
    let differs: Vec<String> = compared
        .differs
        .iter()
        .map(|it| format!("{} ({} from byte {})", it.place, bytes(it.bytes), it.first))
        .collect();
    let left_out = match compared.left_out_bytes {
        0 => String::new(),
        left_out => format!(", {} left out", bytes(left_out)),
    };
    let found = if differs.is_empty() { "equal".to_owned() } else { format!("DIFFERENT: {}", differs.join(", ")) };
    let part = if compared.whole { "" } else { ", and goes on" };
    format!("{found}{left_out} (by {}{part}, {} ago)", compared.by, age(now, compared.at))
}

fn state(replica: &ReplicaView) -> &'static str {
    match replica.state {
        ReplicaState::Making => "being made",
        ReplicaState::Insync => "in sync",
        ReplicaState::Behind if replica.lacks_bytes.is_some() => "catching up",
        ReplicaState::Behind => "not in sync",
        ReplicaState::Failed => "failed",
        ReplicaState::Unreachable => "unreachable",
        ReplicaState::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::storage::{replica, volume};
    use pollux_api::{DifferingReplica, VolumeMoveView, WriterView};

    const NOW: u64 = 1_700_000_090_000;

    fn busy() -> VolumeView {
        let behind = ReplicaView {
            state: ReplicaState::Behind,
            in_sync: false,
            lacks_bytes: Some(300 << 20),
            why: Some("it had not answered for 2000 ms".into()),
            ..replica(2, "n2:fast")
        };
        VolumeView {
            health: VolumeHealth::Degraded,
            vm: Some("web".into()),
            writer: Some(WriterView { node: "n1".into(), doing: "running VM web".into() }),
            generation: 7,
            version: 4,
            replicas: vec![replica(1, "n1:fast"), behind],
            moving: Some(VolumeMoveView {
                operation: "0123456789abcdef".into(),
                from: "n1:fast".into(),
                to: "n3:slow".into(),
                phase: "copying".into(),
                keep_ms: 600_000,
            }),
            open_requests: Some(3),
            created: 1_700_000_000_000,
            ..volume("data", &[])
        }
    }

    #[test]
    fn a_list_of_volumes_tells_which_are_not_whole() {
        insta::assert_snapshot!(many(&[busy(), volume("root", &["n1:fast", "n2:fast"])]), @r"
        NAME  STATE         SIZE  VM   WRITER  IN SYNC  REPLICAS         MOVE
        data  degraded  10.0 GiB  web  n1      1 of 2   n1:fast n2:fast  copying
        root  ready     10.0 GiB  -    -       2 of 2   n1:fast n2:fast  -
        ");
    }

    #[test]
    fn the_last_comparison_is_told_with_what_differs() {
        let at = NOW - 60_000;
        let equal = ComparedView { at, by: "verify".into(), whole: true, left_out_bytes: 0, differs: Vec::new() };
        assert_eq!(told(&equal, NOW), "equal (by verify, 1m00s ago)");
        let other = DifferingReplica { place: "n2:fast".into(), bytes: 65_536, first: 4_096 };
        let found =
            ComparedView { by: "scrub".into(), whole: false, left_out_bytes: 4_096, differs: vec![other], ..equal };
        assert_eq!(
            told(&found, NOW),
            "DIFFERENT: n2:fast (64.0 KiB from byte 4096), 4.0 KiB left out (by scrub, and goes on, 1m00s ago)"
        );
    }

    #[test]
    fn one_volume_is_told_with_each_of_its_replicas() {
        insta::assert_snapshot!(single(&busy(), NOW), @r"
        name           data
        id             1
        state          degraded
        size           10.0 GiB
        vm             web
        writer         n1, running VM web
        generation     7
        in-sync set    n1:fast (version 4)
        open requests  3
        move           n1:fast -> n3:slow, copying (operation 01234567)
        created        2023-11-14T22:13:20Z (1m30s ago)

        REPLICA  STATE          LACKS  AUTHORITY  WHY
        n1:fast  in sync            -  yes        -
        n2:fast  catching up  300 MiB  -          it had not answered for 2000 ms
        ");
    }
}
