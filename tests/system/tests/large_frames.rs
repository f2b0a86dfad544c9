//! A card with a large MTU: its frames pass whole, before a move and after it, and the VM is kept from nodes whose bridges would drop them.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use pollux_lab::CLIENT_ADDRESS;
use pollux_system_tests::{
    World,
    cli::exit,
    client::Client,
    views::{Vm, Why},
    waiting::{SETTLE, until},
};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
/// Where the guest throws everything away.
const DISCARD_PORT: u16 = 7002;
/// What is sent at a time, in bytes: several frames of Ethernet's own size, and one of this VM's.
const LARGE: usize = 8_000;
/// How often.
const TIMES: u64 = 20;
/// Longest wait for one of many datagrams under way.
const UNDER_WAY: Duration = Duration::from_secs(20);

#[test]
fn large_frames_go_with_a_vm_and_only_where_bridges_carry_them() {
    let world = World::start(3);
    bridge_carries(&world, "n3", "1500");

    // Refused where it would start, before there is anything.
    let kernel = world.image().kernel.to_string_lossy().into_owned();
    let words = ["vm", "create", "web", "--node", "n3", "--kernel", &kernel, "--nic", "br0", "--mtu", "9000"];
    world.pollux("n1", &words).refused(exit::CONFLICT, &["web", "n3", "br0", "1500", "9000"]);
    let vms: Vec<Vm> = world.pollux("n1", &["vm", "list"]).json();
    assert!(vms.is_empty(), "{vms:?}");

    let guest = world.create("web", "n1", ADDRESS, &["--mtu", "9000"]);
    let boot = guest.boot();
    frames_are_large(&world, &guest);

    // Told beforehand, and by every way of asking.
    world.pollux("n1", &["vm", "migrate", "web", "--to", "n3", "--dry-run"]).refused(exit::CONFLICT, &["n3"]);
    world.pollux("n1", &["vm", "migrate", "web", "--to", "n3"]).refused(exit::CONFLICT, &["br0", "1500", "9000"]);
    let why: Why = world.pollux("n2", &["vm", "why", "web"]).json();
    let told: Vec<_> = why.nodes.iter().map(|node| (node.fits, node.obstacles.first().map(|it| &*it.about))).collect();
    assert_eq!(told, [(true, None), (true, None), (false, Some("mtu"))], "{:?}", why.nodes);
    assert!(world.operations("n1").is_empty(), "nothing was started");

    world.moves("n3", "n2");
    frames_are_large(&world, &guest);

    // The bridge is made to carry them: nothing has to be started again.
    bridge_carries(&world, "n3", "9000");
    world.moves("n1", "n3");
    frames_are_large(&world, &guest);
    assert_eq!(guest.boot(), boot);
}

fn bridge_carries(world: &World, node: &str, mtu: &str) {
    let done = world.host(node).command(&["ip", "link", "set", "br0", "mtu", mtu]).status();
    assert!(done.as_ref().is_ok_and(std::process::ExitStatus::success), "{node}: {done:?}");
}

/// What is sent to the guest, and by it, arrives, and not in pieces: by the count of its own card, which knows nothing of datagrams.
fn frames_are_large(world: &World, guest: &Client) {
    let (lan, bytes) = (world.host("lan"), TIMES * LARGE as u64);
    let sink = lan.within(|| UdpSocket::bind((CLIENT_ADDRESS, 0))).expect("clients have a place").expect("a free port");
    sink.set_read_timeout(Some(UNDER_WAY)).expect("it takes a timeout");

    let before = card(guest);
    let send = || -> io::Result<()> {
        (0..TIMES).try_for_each(|_| sink.send_to(&[0x5a; LARGE], (ADDRESS, DISCARD_PORT)).map(drop))
    };
    send().expect("it is sent");
    until("the guest to receive large frames", SETTLE, || {
        let [frames, received, ..] = difference(card(guest), before);
        // In pieces it would be six times as many; what the question itself takes is some frames more.
        if received >= bytes && frames < 3 * TIMES {
            Ok(())
        } else {
            Err(format!("{received} bytes in {frames} frames"))
        }
    });

    let before = card(guest);
    let to = sink.local_addr().expect("it is bound");
    guest.ask(&format!("FLOOD udp {to} {LARGE} 1"));
    let mut datagram = vec![0; LARGE * 2];
    assert_eq!(sink.recv(&mut datagram).expect("what the guest sends arrives"), LARGE);
    let [_, _, frames, sent] = difference(card(guest), before);
    assert!(sent / frames > LARGE as u64 / 2, "{sent} bytes in {frames} frames");
}

/// Frames and bytes received, frames and bytes sent.
fn card(guest: &Client) -> [u64; 4] {
    let answer = guest.ask("NET");
    let figures: Vec<u64> = answer.split_whitespace().skip(1).filter_map(|figure| figure.parse().ok()).collect();
    figures.try_into().unwrap_or_else(|figures| panic!("{answer}: {figures:?}"))
}

fn difference(now: [u64; 4], before: [u64; 4]) -> [u64; 4] {
    std::array::from_fn(|at| now[at] - before[at])
}
