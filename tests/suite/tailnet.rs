//! Addresses and other nodes from Tailscale, for which a stand-in answers.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use muster_tests::api::{Api, send, try_send};
use muster_tests::fleet::{Home, Node, Outcome, PATIENCE, outcome};
use muster_tests::groups::Need;
use muster_tests::process::{binary, wait_for};
use muster_tests::tailscaled::{Behaviour, Peer, Tailscaled, needs_login, own_address, running};
use serde_json::Value;

/// A preset token, and obviously one of a test.
const ADMIN: &str = "token-of-the-tests-administrator";

/// A command for which Tailscale is what this says, and no address is given by the environment.
fn command(home: &Home, tailscale: &str, arguments: &[&str]) -> Command {
    let mut command = home.command(arguments);
    command.env_remove("MUSTER_MESH").env_remove("MUSTER_PROXY").env("MUSTER_TAILSCALE", tailscale);
    command.env("MUSTER_ADMIN_TOKEN", ADMIN);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Value and origin of each of these keys.
fn shown<const N: usize>(outcome: &Outcome, keys: [&str; N]) -> [(String, String); N] {
    let rows = outcome.json();
    let text = |row: &Value, field: &str| row[field].as_str().expect("a text").to_owned();
    keys.map(|key| {
        let row = rows.as_array().expect("a list").iter().find(|row| row["key"] == key).expect("the key");
        (text(row, "value"), text(row, "origin"))
    })
}

fn row(value: impl ToString, origin: &str) -> (String, String) {
    (value.to_string(), origin.to_owned())
}

#[test]
fn addresses_that_nobody_gives_are_those_of_the_tailnet_and_what_is_given_wins() {
    let (home, own) = (Home::new(), own_address());
    let tailscaled = Tailscaled::start(home.path(), running(own, &[]));
    let socket = text(tailscaled.socket());
    let show = |tailscale: &str, variables: &[(&str, &str)]| {
        let mut command = command(&home, tailscale, &["config", "show", "-o", "json"]);
        shown(&outcome(command.envs(variables.iter().copied())), ["api", "proxy", "mesh", "advertise", "tailscale"])
    };
    let given = row(socket, "environment MUSTER_TAILSCALE");
    let [api, proxy, mesh] = [8000, 4000, 7946].map(|port| row(format!("{own}:{port}"), "tailscale"));
    let all = [api, proxy.clone(), mesh.clone(), row(own, "tailscale"), given.clone()];
    assert_eq!(show(socket, &[]), all);
    // Others are not sent to an address where the API is not.
    let file = home.path().join("muster.toml");
    std::fs::write(&file, "api = \"127.0.0.2:8001\"\n").expect("a file");
    let from_file = row("127.0.0.2:8001", &format!("file {}", file.display()));
    let no_host = row("", "default");
    let some = [from_file, proxy, mesh.clone(), no_host.clone(), given.clone()];
    assert_eq!(show(socket, &[("MUSTER_CONFIG", text(&file))]), some);
    let variables =
        [("MUSTER_API", "0.0.0.0:8000"), ("MUSTER_PROXY", "0.0.0.0:4000"), ("MUSTER_ADVERTISE", "gpu1.lab")];
    let [everywhere, everywhere_too] = [("8000", "API"), ("4000", "PROXY")]
        .map(|(port, name)| row(format!("0.0.0.0:{port}"), &format!("environment MUSTER_{name}")));
    let host = row("gpu1.lab", "environment MUSTER_ADVERTISE");
    assert_eq!(
        show(socket, &variables),
        [everywhere.clone(), everywhere_too.clone(), mesh.clone(), host, given.clone()]
    );
    let told = row(own, "tailscale");
    assert_eq!(show(socket, &variables[..2]), [everywhere, everywhere_too, mesh, told, given]);
    let [api, proxy, mesh] = [8000, 4000, 7946].map(|port| row(format!("127.0.0.1:{port}"), "default"));
    assert_eq!(show("off", &[]), [api, proxy, mesh, no_host, row("off", "environment MUSTER_TAILSCALE")]);
}

#[test]
fn a_tailscaled_that_was_named_and_gives_no_address_is_an_error() {
    let (home, own) = (Home::new(), own_address());
    let mut tailscaled = Tailscaled::absent(home.path());
    let socket = tailscaled.socket().to_owned();
    let fails = |said: &str| {
        for arguments in [&["config", "show"][..], &["serve"]] {
            let failed = outcome(&mut command(&home, text(&socket), arguments));
            failed.ended_with(1);
            let named = failed.stderr.contains(text(&socket)) && failed.stderr.contains(said);
            assert!(named && failed.stderr.lines().count() == 1, "{said} in {failed:?}");
        }
    };
    fails("No such file");
    for (behaviour, said) in [
        (Behaviour::Silent, "no answer within 2 s"),
        (Behaviour::Bytes(b"\0\0\0nonsense\r\n\r\n".to_vec()), "does not answer"),
        (Behaviour::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]".to_vec()), "no status"),
        (Behaviour::Bytes(b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno".to_vec()), "500"),
        (needs_login(), "NeedsLogin"),
        (Behaviour::Status(serde_json::json!({"BackendState": "Running", "Self": {"TailscaleIPs": []}})), "no address"),
    ] {
        tailscaled.restart(behaviour);
        fails(said);
    }
    // What needs no address does not ask.
    let alone = outcome(&mut command(&home, text(&socket), &["models", "list"]));
    assert!(alone.ended_with(1).stderr.contains("is it running?"), "{alone:?}");
    for wrong in ["yes", "tailscaled.sock"] {
        let refused = outcome(&mut command(&home, wrong, &["config", "show"]));
        assert!(refused.ended_with(1).stderr.contains("tailscale"), "{refused:?}");
    }
    let refused = outcome(command(&home, "off", &["config", "show"]).env("MUSTER_TAILSCALE_TAG", "muster"));
    assert!(refused.ended_with(1).stderr.contains("tailscale_tag"), "{refused:?}");
    // It comes later.
    tailscaled.restart(running(own, &[]));
    let [api] = shown(&outcome(&mut command(&home, text(&socket), &["config", "show", "-o", "json"])), ["api"]);
    assert_eq!(api, row(format!("{own}:8000"), "tailscale"));
}

/// A command that sees this socket where tailscaled has its own.
fn where_it_always_is(home: &Home, socket: &Path, arguments: &[&str]) -> Command {
    let own = command(home, "auto", arguments);
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=1m tmpfs /run && mkdir -p /run/tailscale /var/run/tailscale && \
                  ln -sf \"$0\" /run/tailscale/tailscaled.sock && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(socket).arg(own.get_program()).args(own.get_args());
    command.env_clear().envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

#[test]
fn without_being_told_a_tailscaled_that_runs_is_used_and_one_that_does_not_is_warned_of() {
    if !Need::Mounts.is_met("tailnet") {
        return;
    }
    let (home, own) = (Home::new(), own_address());
    let mut tailscaled = Tailscaled::absent(home.path());
    let socket = tailscaled.socket().to_owned();
    let show = || {
        let outcome = outcome(&mut where_it_always_is(&home, &socket, &["config", "show", "-o", "json"]));
        (shown(&outcome, ["api"]), outcome.stderr)
    };
    let loopback = [row("127.0.0.1:8000", "default")];
    assert_eq!(show(), (loopback.clone(), String::new()), "nothing is installed");
    for behaviour in [Behaviour::Silent, needs_login()] {
        tailscaled.restart(behaviour);
        let (api, said) = show();
        assert_eq!(api, loopback);
        assert!(said.contains("WARN") && said.contains("tailscaled.sock") && said.contains("on loopback"), "{said}");
    }
    tailscaled.restart(running(own, &[]));
    assert_eq!(show(), ([row(format!("{own}:8000"), "tailscale")], String::new()));
}

#[test]
fn a_node_that_the_fleet_knows_in_a_tailnet_waits_for_tailscaled() {
    if !Need::Mounts.is_met("tailnet") {
        return;
    }
    let (home, own) = (Home::new(), own_address());
    let mut tailscaled = Tailscaled::start(home.path(), running(own, &[]));
    let socket = tailscaled.socket().to_owned();
    let serve = |more: &[&str]| {
        let arguments = [&["serve", "--name", "gpu1", "--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0"], more].concat();
        where_it_always_is(&home, &socket, &arguments)
    };
    let mut node = Node::start_command(&home, &mut serve(&["--bootstrap"]));
    node.ready();
    let at = format!("mesh={own}:7946");
    assert!(home.log().contains(&at));
    node.process().terminate();
    assert!(node.process().wait(PATIENCE).success());

    // The machine starts again, and tailscaled has not connected yet.
    tailscaled.restart(needs_login());
    let before = home.log().len();
    let mut process = home.start(&mut serve(&[]));
    awaits(&home, before, "waiting for up to 60 s, as this node was in a tailnet");
    tailscaled.restart(running(own, &[]));
    awaits(&home, before, &at);
    awaits(&home, before, "serving");
    assert!(!home.log()[before..].contains("mesh=127.0.0.1"), "never on loopback");
    process.terminate();
    assert!(process.wait(PATIENCE).success());
    // Unless somebody says so.
    let before = home.log().len();
    let mut process = home.start(&mut serve(&["--tailscale", "off"]));
    awaits(&home, before, "mesh=127.0.0.1:7946");
    process.terminate();
    assert!(process.wait(PATIENCE).success());
}

#[test]
fn addresses_given_by_flags_are_the_only_ones() {
    let (home, own) = (Home::new(), own_address());
    let tailscaled = Tailscaled::start(home.path(), running(own, &[]));
    let socket = text(tailscaled.socket());
    let local = ["--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0", "--mesh", "127.0.0.1:0"];
    let mut serve = command(&home, "off", &["serve", "--bootstrap", "--tailscale", socket]);
    let mut node = Node::start_command(&home, serve.args(local));
    node.ready();
    assert!(node.anybody().endpoint().starts_with("http://127.0.0.1:"));
    let nodes = node.caller(ADMIN).get("/api/nodes").expect(200);
    assert_eq!(nodes.body[0]["ip_address"], "127.0.0.1", "{nodes}");
    assert!(!home.log().contains("on loopback as well"));
}

/// Nobody else has the usual ports while this is there.
fn usual_ports() -> File {
    let file = File::create(binary("muster").with_file_name("usual-ports")).expect("a file");
    file.lock().expect("a lock");
    file
}

/// D-004
#[test]
fn the_api_and_the_proxy_are_on_loopback_as_well_and_a_successor_inherits_them() {
    let _ports = usual_ports();
    if !Need::UsualPorts.is_met("tailnet") {
        return;
    }
    let (home, own) = (Home::new(), own_address());
    let tailscaled = Tailscaled::start(home.path(), running(own, &[]));
    let socket = text(tailscaled.socket());
    let mut node = Node::start_command(&home, &mut command(&home, socket, &["serve", "--bootstrap", "--name", "gpu1"]));
    node.ready();
    assert_eq!(node.anybody().endpoint(), format!("http://{own}:8000"));
    let all_answer = || {
        for place in [own, Ipv4Addr::LOCALHOST] {
            let (api, proxy) = (Api::new(&format!("http://{place}:8000")), Api::new(&format!("http://{place}:4000")));
            let nodes = api.with_key(ADMIN).get("/api/nodes").expect(200);
            assert_eq!(nodes.body[0]["ip_address"], own.to_string(), "{nodes}");
            assert_eq!(proxy.get("/models").status, 401, "the proxy's paths have no /v1");
            assert_eq!(proxy.get("/api/nodes").status, 404, "the proxy is at the models alone");
            // Whoever resolves a machine's name in the tailnet asks by it.
            for name in ["gpu1:4000", "gpu1.tail1234.ts.net:4000"] {
                let health = send(proxy.request("GET", "/health").header("host", name)).expect(200);
                assert_eq!(health.body["status"], "healthy", "{health}");
            }
        }
    };
    all_answer();

    let successor = |more: &[&str]| {
        let arguments = [&["serve", "--name", "gpu1", "--take-over"], more].concat();
        command(&home, socket, &arguments)
    };
    // The same address as before, and without loopback.
    let api = format!("{own}:8000");
    let refused = outcome(&mut successor(&["--api", &api]));
    assert!(refused.ended_with(1).stderr.contains("127.0.0.1:8000"), "{refused:?}");
    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let local = Api::new("http://127.0.0.1:8000");
            while !stop.load(Ordering::Relaxed) {
                let answer = try_send(local.request("GET", "/health"));
                answers.fetch_add(1, Ordering::Relaxed);
                assert!(answer.as_ref().is_ok_and(|answer| answer.status == 200), "{answer:?}");
            }
        });
        let more = || {
            let before = answers.load(Ordering::Relaxed);
            wait_for(PATIENCE, "answers on loopback", || (answers.load(Ordering::Relaxed) > before + 3).then_some(()));
        };
        more();
        let mut next = Node::start_command(&home, &mut successor(&[]));
        std::mem::swap(&mut node, &mut next);
        assert!(next.process().wait(PATIENCE).success(), "the old one has nothing more to do");
        more();
        stop.store(true, Ordering::Relaxed);
    });
    node.ready();
    all_answer();
    node.process().terminate();
    assert!(node.process().wait(PATIENCE).success());
}

/// The founder of a fleet at this address of the mesh, and a token with which others join.
fn founder(home: &Home, mesh: &str) -> (Node, String) {
    let mut serve = command(home, "off", &["serve", "--bootstrap", "--name", "gpu1", "--mesh", mesh]);
    let mut node = Node::start_command(home, serve.args(["--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0"]));
    node.ready();
    let token = home.muster(&["token", "create", "-o", "json"]).json()["token"].as_str().expect("a token").to_owned();
    (node, token)
}

/// Starts a node that joins through these.
fn joiner(home: &Home, tailscale: &str, mesh: &str, join: &str, token: &str) -> Command {
    let arguments = ["serve", "--name", "gpu9", "--mesh", mesh, "--join", join, "--join-token", token];
    let mut command = command(home, tailscale, &arguments);
    command.args(["--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0"]);
    command
}

/// An address beside this one.
fn beside(own: Ipv4Addr, number: u8) -> Ipv4Addr {
    let [a, b, c, _] = own.octets();
    Ipv4Addr::new(a, b, c, number)
}

fn awaits(home: &Home, before: usize, what: &str) {
    wait_for(PATIENCE, what, || home.log().get(before..).is_some_and(|log| log.contains(what)).then_some(()));
}

#[test]
fn only_machines_that_are_online_and_have_the_tag_are_asked_to_let_a_node_in() {
    let (homes, own) = ([Home::new(), Home::new()], own_address());
    let port = rand::random_range(10_000..32_000);
    let (_founder, token) = founder(&homes[0], &format!("{own}:{port}"));
    // In the order in which they would be asked.
    let others = [(2, &["tag:muster"][..], false), (3, &[], true), (4, &["tag:gpu", "tag:muster-2"], true)];
    let peer = |(number, tags, online)| Peer { address: beside(own, number), tags, online };
    let mut peers: Vec<_> = others.into_iter().map(peer).collect();
    let listening: Vec<_> =
        peers.iter().map(|peer| TcpListener::bind((peer.address, port)).expect("nobody has it")).collect();
    peers.push(Peer { address: own, tags: &["tag:gpu", "tag:muster"], online: true });
    let joining = beside(own, 9);
    let tailscaled = Tailscaled::start(homes[1].path(), running(joining, &peers));
    let (socket, mesh) = (text(tailscaled.socket()), format!("{joining}:{port}"));
    let refused = outcome(&mut joiner(&homes[1], "off", &mesh, "tailscale", &token));
    assert!(refused.ended_with(2).stderr.contains("--join tailscale"), "{refused:?}");
    // One more, where nobody is.
    let seeds = format!("{}:{port},tailscale", beside(own, 8));
    let mut node = Node::start_command(&homes[1], &mut joiner(&homes[1], socket, &mesh, &seeds, &token));
    node.ready();
    assert_eq!(node.caller(ADMIN).get("/api/nodes").expect(200).body.as_array().map(Vec::len), Some(2));
    for listener in listening {
        listener.set_nonblocking(true).expect("takes it");
        let asked = listener.accept().map(|(_, from)| from);
        assert!(asked.is_err(), "{asked:?} asked {listener:?}");
    }
}

#[test]
fn the_tailnet_is_looked_at_again_until_the_fleet_is_there() {
    let (homes, own) = ([Home::new(), Home::new()], own_address());
    let port = rand::random_range(10_000..32_000);
    let (_founder, token) = founder(&homes[0], &format!("{own}:{port}"));
    let joining = beside(own, 9);
    let mut tailscaled = Tailscaled::start(homes[1].path(), running(joining, &[]));
    let (socket, mesh) = (text(tailscaled.socket()).to_owned(), format!("{joining}:{port}"));
    let mut command = joiner(&homes[1], &socket, &mesh, "tailscale", &token);
    let mut node = Node::start_command(&homes[1], command.env("MUSTER_TAILSCALE_TAG", "tag:lab"));
    awaits(&homes[1], 0, "no machine in the tailnet has the tag");
    for behaviour in [None, Some(Behaviour::Silent), Some(needs_login())] {
        let before = homes[1].log().len();
        match behaviour {
            None => tailscaled.end(),
            Some(behaviour) => tailscaled.restart(behaviour),
        }
        awaits(&homes[1], before, "nobody in the tailnet can be asked");
    }
    let wrong = Peer { address: own, tags: &["tag:muster"], online: true };
    let before = homes[1].log().len();
    tailscaled.restart(running(joining, &[wrong]));
    awaits(&homes[1], before, "no machine in the tailnet has the tag");
    tailscaled.restart(running(joining, &[Peer { tags: &["tag:lab"], ..wrong }]));
    node.ready();
}

/// The first address of the name takes connections and never answers, as behind a firewall.
#[test]
fn a_name_is_looked_up_at_each_attempt_and_each_of_its_addresses_is_asked() {
    if !Need::Mounts.is_met("tailnet") {
        return;
    }
    let (homes, own) = ([Home::new(), Home::new()], own_address());
    let port = rand::random_range(10_000..32_000);
    let (_founder, token) = founder(&homes[0], &format!("{own}:{port}"));
    let silent = TcpListener::bind((beside(own, 2), port)).expect("nobody has it");
    let hosts = homes[1].path().join("hosts");
    let says = |content: &str| std::fs::write(&hosts, content).expect("a file");
    says("127.0.0.1 localhost\n");
    let inner = joiner(&homes[1], "off", "127.0.0.1:0", &format!("fleet.test:{port}"), &token);
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(&hosts).arg(inner.get_program()).args(inner.get_args());
    command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let mut node = Node::start_command(&homes[1], &mut command);
    awaits(&homes[1], 0, "leads nowhere yet");
    says(&format!("{} fleet.test\n{own} fleet.test\n", beside(own, 2)));
    node.ready();
    silent.set_nonblocking(true).expect("takes it");
    assert!(silent.accept().is_ok(), "the first address was asked, too");
}
