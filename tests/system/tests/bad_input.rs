//! What users get wrong: each mistake has its exit code and a message that names the object, and changes nothing.

use pollux_system_tests::{
    World,
    cli::exit,
    views::Vm,
    waiting::{SETTLE, until},
};

#[test]
fn every_mistake_has_its_exit_code_and_names_what_it_is_about() {
    let world = World::start(3);
    let image = world.image().clone();
    let (kernel, initrd) = (image.kernel.to_str().unwrap(), image.initrd.to_str().unwrap());
    let (guest, boot) = world.boot("n1");
    let stopped = ["vm", "create", "idle", "--node", "n2", "--kernel", kernel, "--initrd", initrd, "--no-start"];
    let _: Vm = world.pollux("n1", &stopped).json();

    let table: &[(&[&str], i32, &[&str])] = &[
        // Creating.
        (&["vm", "create", "web", "--kernel", kernel], exit::CONFLICT, &["web", "taken"]),
        (&["vm", "create", "Web", "--kernel", kernel], exit::USAGE, &["Web"]),
        (&["vm", "create", "a", "--kernel", kernel, "--node", "n9"], exit::NOT_FOUND, &["n9"]),
        (&["vm", "create", "a", "--kernel", kernel, "--memory", "8M"], exit::USAGE, &["memory"]),
        (&["vm", "create", "a", "--kernel", kernel, "--vcpus", "0"], exit::USAGE, &["vcpus"]),
        (&["vm", "create", "a", "--kernel", kernel, "--nic", "a/b"], exit::USAGE, &["a/b"]),
        (&["vm", "create", "a", "--file", "/nowhere/vm.toml"], exit::USAGE, &["/nowhere/vm.toml"]),
        // What is not there.
        (&["vm", "show", "nobody"], exit::NOT_FOUND, &["nobody"]),
        (&["vm", "start", "nobody"], exit::NOT_FOUND, &["nobody"]),
        (&["vm", "stop", "nobody"], exit::NOT_FOUND, &["nobody"]),
        (&["vm", "log", "nobody"], exit::NOT_FOUND, &["nobody"]),
        (&["vm", "delete", "nobody"], exit::NOT_FOUND, &["nobody"]),
        (&["vm", "migrate", "nobody", "--to", "n2"], exit::NOT_FOUND, &["nobody"]),
        (&["node", "show", "n9"], exit::NOT_FOUND, &["n9"]),
        (&["op", "show", "ffffffff"], exit::NOT_FOUND, &["ffffffff"]),
        (&["op", "cancel", "ffffffff"], exit::NOT_FOUND, &["ffffffff"]),
        // Moving.
        (&["vm", "migrate", "web", "--to", "n9"], exit::NOT_FOUND, &["n9"]),
        (&["vm", "migrate", "web", "--to", "n1"], exit::CONFLICT, &["web", "n1"]),
        (&["vm", "migrate", "idle", "--to", "n2"], exit::CONFLICT, &["idle", "at home there"]),
        (&["vm", "migrate", "web", "--to", "n2", "--max-blackout", "1ms"], exit::USAGE, &["blackout"]),
        // What the object's state does not allow.
        (&["vm", "delete", "web"], exit::CONFLICT, &["web", "stop"]),
        (&["vm", "start", "web", "--node", "n2"], exit::CONFLICT, &["web"]),
        (&["vm", "takeback", "web", "--operator", "me", "--yes"], exit::CONFLICT, &["web"]),
    ];
    for node in ["n1", "n3"] {
        for (words, code, named) in table {
            world.pollux(node, words).refused(*code, named);
        }
    }

    // Nothing came of any of it.
    let vms: Vec<Vm> = world.pollux("n2", &["vm", "list"]).json();
    let names: Vec<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["idle", "web"]);
    assert!(world.operations("n2").is_empty(), "no move was begun");
    assert_eq!((world.settled("n1").generation, guest.boot()), (1, boot));

    // Nobody answers where there is no daemon.
    let away = world.pollux("n1", &["--socket", "/nowhere/api.sock", "vm", "list"]);
    away.refused(exit::UNAVAILABLE, &["/nowhere/api.sock"]);
}

#[test]
fn a_vm_that_cannot_start_says_why_and_is_tried_again_later() {
    let world = World::start(3);
    let image = world.image().clone();
    let kernel = image.kernel.to_str().unwrap();

    // What is missing is found where the VM is to start, not where it was asked for.
    for (name, words, named) in [
        ("kernelless", vec!["--kernel", "/nowhere/vmlinuz"], "/nowhere/vmlinuz"),
        ("bridgeless", vec!["--kernel", kernel, "--nic", "br7"], "br7"),
    ] {
        let create = [vec!["vm", "create", name, "--node", "n2", "--wait"], words].concat();
        world.pollux("n1", &create).refused(exit::FAILED, &[name, named]);
        until("a second attempt", SETTLE, || {
            let vm = world.vm("n3", name);
            if vm.failed_starts >= 2 { Ok(()) } else { Err(format!("{vm:?}")) }
        });
        until("the cause between two attempts", SETTLE, || {
            let vm = world.vm("n3", name);
            match vm.stop_cause {
                Some(cause) if vm.phase == "stopped" && cause.contains(named) => Ok(()),
                _ => Err(format!("{vm:?}")),
            }
        });
        until("nothing to be left of the attempt", SETTLE, || world.has("n2", 0));

        // Wanted stopped, it is left alone.
        let vm: Vm = world.pollux("n3", &["vm", "stop", name]).json();
        assert_eq!((vm.phase.as_str(), vm.desired.as_str()), ("stopped", "stopped"));
        let _: Vm = world.pollux("n3", &["vm", "delete", name]).json();
    }
    world.healthy();
}
