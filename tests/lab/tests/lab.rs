//! A lab whose nodes run `sleep` in place of a daemon: the network, the faults and the cleaning up. Needs root.
#![allow(missing_docs)]

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use pollux_lab::{CLIENT_ADDRESS, Cable, Daemon, DaemonState, Lab, LabConfig, LabError, LabGuard, LabName, leftovers};

/// A name no other test has, nor any other run at the same time.
fn unique(letter: char) -> LabName {
    format!("t{letter}{}", std::process::id()).parse().unwrap()
}

fn config(name: &LabName, nodes: u8, daemon: &[&str]) -> LabConfig {
    let daemon = Daemon::Command(daemon.iter().map(|word| (*word).to_owned()).collect());
    LabConfig { name: name.clone(), nodes, daemon, dir: None }
}

fn up(letter: char, nodes: u8) -> LabGuard {
    Lab::up(&config(&unique(letter), nodes, &["sleep", "600"])).unwrap().guard()
}

fn cable(text: &str) -> Cable {
    text.parse().unwrap()
}

/// Does a packet of `from` reach `to` on the cluster network? It is sent again and again, as the first may be lost to the
/// search for an address; what is cut loses them all.
fn heard(lab: &Lab, from: u8, to: u8) -> bool {
    const PATIENCE: Duration = Duration::from_millis(500);
    let address = Ipv4Addr::new(10, 77, 0, to);
    let ear = lab.host(&format!("n{to}")).unwrap().within(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
    let mouth = lab.host(&format!("n{from}")).unwrap().within(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    ear.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        mouth.send_to(b"hello", ear.local_addr().unwrap()).unwrap();
        if ear.recv(&mut [0; 16]).is_ok() {
            return true;
        }
    }
    false
}

fn daemon(lab: &Lab, node: usize) -> DaemonState {
    lab.status().unwrap().nodes[node - 1].daemon
}

fn pid(state: DaemonState) -> i32 {
    match state {
        DaemonState::Running { pid } | DaemonState::Paused { pid } => pid,
        DaemonState::Stopped => panic!("the daemon does not run"),
    }
}

#[test]
fn nodes_reach_each_other_and_nothing_is_left_when_they_are_gone() {
    let addresses = || Command::new("ip").args(["-o", "address"]).output().unwrap().stdout;
    let routes = || Command::new("ip").args(["route"]).output().unwrap().stdout;
    let before = (addresses(), routes());
    let lab = up('a', 3);

    for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 2)] {
        assert!(heard(&lab, from, to), "n{from} does not reach n{to}");
    }
    assert_eq!((addresses(), routes()), before, "the host's own network was changed");
    assert!(!leftovers(lab.name()).is_empty(), "a lab that is up consists of something");

    let (name, daemon) = (lab.name().clone(), pid(daemon(&lab, 1)));
    drop(lab);
    assert_eq!(leftovers(&name), Vec::<String>::new());
    assert!(!Path::new(&format!("/proc/{daemon}")).exists(), "the daemon is still there");
    Lab::down(&name).expect("taking down what is gone does nothing");
}

#[test]
fn a_guests_bridge_reaches_the_clients_and_is_apart_from_the_cluster() {
    let lab = up('b', 2);
    let clients = lab.host("lan").unwrap();
    let node = lab.host("n2").unwrap();
    // Stands in for a guest: an address on the node's bridge.
    assert_eq!(node.exec(&["ip", "address", "add", "10.78.0.50/24", "dev", "br0"]).unwrap().code, Some(0));

    let server = node.within(|| TcpListener::bind("10.78.0.50:0").unwrap()).unwrap();
    let address = server.local_addr().unwrap();
    let client = clients.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(5))).unwrap().unwrap();
    assert_eq!(client.local_addr().unwrap().ip(), CLIENT_ADDRESS);

    let cluster = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 7700).into();
    let crossing = clients.within(|| TcpStream::connect_timeout(&cluster, Duration::from_secs(5))).unwrap();
    assert_eq!(crossing.unwrap_err().kind(), io::ErrorKind::NetworkUnreachable);
}

#[test]
fn cables_are_cut_and_mended_one_way_or_both() {
    let lab = up('c', 3);

    lab.cut(cable("n1>n2")).unwrap();
    assert!(!heard(&lab, 1, 2) && heard(&lab, 2, 1), "one way is one way");

    assert_eq!(lab.cut(cable("n1:n2")).unwrap().cuts, ["n1>n2", "n2>n1"]);
    assert!(!heard(&lab, 1, 2) && !heard(&lab, 2, 1) && heard(&lab, 1, 3));

    lab.heal(Some(cable("n2>n1"))).unwrap();
    assert!(heard(&lab, 2, 1) && !heard(&lab, 1, 2));

    lab.cut(cable("n3")).unwrap();
    assert!(!heard(&lab, 3, 1) && !heard(&lab, 2, 3) && heard(&lab, 2, 1));

    assert_eq!(lab.heal(None).unwrap().cuts, Vec::<String>::new());
    assert!(heard(&lab, 1, 2) && heard(&lab, 3, 1) && heard(&lab, 2, 3));
    assert!(matches!(lab.cut(cable("n4")), Err(LabError::BadCable(_))));
}

#[test]
fn daemons_are_killed_paused_and_started_and_another_process_would_see_the_same() {
    let lab = up('d', 2);
    let first = pid(daemon(&lab, 1));

    lab.pause("n1", false).unwrap();
    assert_eq!(daemon(&lab, 1), DaemonState::Paused { pid: first });
    lab.resume("n1").unwrap();
    assert_eq!(daemon(&lab, 1), DaemonState::Running { pid: first });
    assert!(matches!(lab.start("n1"), Err(LabError::Running { .. })));

    lab.kill("n1").unwrap();
    assert_eq!(daemon(&lab, 1), DaemonState::Stopped);
    assert!(matches!(lab.kill("n1"), Err(LabError::NotRunning { .. })));
    assert!(matches!(lab.pause("n1", true), Err(LabError::NotRunning { .. })));

    lab.start("n1").unwrap();
    assert_ne!(pid(daemon(&lab, 1)), first);
    assert_eq!(Lab::open(lab.name()).unwrap().status().unwrap(), lab.status().unwrap());
}

#[test]
fn a_pause_with_vms_stops_what_the_daemon_started_too() {
    let lab = Lab::up(&config(&unique('e'), 1, &["sh", "-c", "sleep 600 & wait"])).unwrap().guard();
    let parent = pid(daemon(&lab, 1));
    let child = || {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        // What brings the daemon to its place has children of its own before that.
        let sleeps =
            |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep");
        children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()).find(sleeps)
    };
    let since = Instant::now();
    while child().is_none() {
        assert!(since.elapsed() < Duration::from_secs(10), "the daemon never started its child");
    }
    let child = child().unwrap();
    let state =
        || fs::read_to_string(format!("/proc/{child}/stat")).unwrap().split_whitespace().nth(2).unwrap().to_owned();

    lab.pause("n1", false).unwrap();
    assert_ne!(state(), "T", "only the daemon was to be paused");
    lab.pause("n1", true).unwrap();
    while state() != "T" {
        assert!(since.elapsed() < Duration::from_secs(10), "the child was never paused");
    }

    // Paused processes do not keep a lab up.
    let name = lab.name().clone();
    drop(lab);
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn what_runs_in_a_lab_knows_where_it_is() {
    let lab = up('f', 1);
    let node = lab.host("n1").unwrap();

    let output = node.exec(&["sh", "-c", "echo $POLLUX_LAB $POLLUX_SOCKET; exit 7"]).unwrap();

    assert_eq!(output.code, Some(7));
    assert_eq!(output.stdout.trim(), format!("{} {}", lab.name(), lab.dir().join("n1/api.sock").display()));
    let error = lab.host("n2").unwrap_err().to_string();
    assert!(error.contains("'n2'") && error.contains("n1, lan"), "unhelpful: {error}");
}

#[test]
fn a_lab_that_cannot_be_made_is_taken_down_and_says_why() {
    let name = unique('g');
    let script = "echo this is why >&2; exit 1";
    let binary = tempfile::tempdir().unwrap();
    let pollux = binary.path().join("pollux");
    fs::write(&pollux, format!("#!/bin/sh\n[ \"$1\" = cluster ] || {{ {script}; }}\n")).unwrap();
    fs::set_permissions(&pollux, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

    let config = LabConfig { name: name.clone(), nodes: 2, daemon: Daemon::Pollux(pollux), dir: None };
    let error = Lab::up(&config).unwrap_err();

    assert!(
        matches!(&error, LabError::DaemonEnded { node, tail, .. } if node == "n1" && tail.contains("this is why")),
        "{error}"
    );
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn a_lab_whose_state_is_lost_goes_down_all_the_same() {
    let lab = up('h', 2);
    let name = lab.name().clone();
    fs::remove_file(lab.dir().join("lab.json")).unwrap();
    assert!(matches!(Lab::open(&name), Err(LabError::NotUp { .. })));
    assert!(matches!(Lab::up(&config(&name, 1, &["sleep", "600"])), Err(LabError::Exists(_))));

    Lab::down(&name).unwrap();

    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn half_a_lab_goes_down_too() {
    let name = unique('i');
    let status = Command::new("ip").args(["netns", "add", &format!("plx-{name}-n1")]).status().unwrap();
    assert!(status.success());

    Lab::down(&name).unwrap();

    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn a_lab_touches_no_other() {
    let (one, other) = (up('j', 1), up('k', 1));
    let survivor = daemon(&other, 1);

    drop(one);

    assert_eq!(daemon(&other, 1), survivor);
    assert!(matches!(survivor, DaemonState::Running { .. }));
}

#[test]
fn a_directory_of_ones_own_keeps_what_is_not_the_labs() {
    let home = tempfile::tempdir().unwrap();
    let name = unique('l');
    let dir = home.path().join("lab");
    let at = |dir: &Path| LabConfig { dir: Some(dir.to_owned()), ..config(&name, 1, &["sleep", "600"]) };

    let lab = Lab::up(&at(&dir)).unwrap().guard();
    assert_eq!(Lab::open(&name).unwrap().dir(), dir);
    fs::write(dir.join("notes.txt"), "mine").unwrap();
    drop(lab);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "only what is not the lab's is left");

    fs::create_dir(dir.join("n1")).unwrap();
    assert!(matches!(Lab::up(&at(&dir)), Err(LabError::BadDir { .. })));
    assert!(dir.join("n1").exists(), "a directory that was refused was cleaned");
    assert_eq!(leftovers(&name), Vec::<String>::new());
}
