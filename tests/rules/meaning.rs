//! Semantics of the script: packets have the same fate as with iptables, except with TPROXY without a listener.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use crate::lab::script::{IDLE, Loader, ScriptFile, restore, whole, with_idle};
use crate::lab::{Lab, Namespace, PATIENCE, connect_from, is_echoed};

/// Time-out of a probe that is expected to be lost.
pub const LOSS_TIME_OUT: Duration = Duration::from_millis(300);

pub const V4: Family = Family {
    name: "v4",
    restore: "iptables-restore",
    cidr: "10.244.0.0/16",
    names: &[
        ("{client}", "192.0.2.2"),
        ("{other}", "192.0.2.66"),
        ("{others}", "192.0.2.64/26"),
        ("{clients}", "192.0.2.0/24"),
        ("{node}", "192.0.2.1"),
        ("{pod}", "10.244.0.5"),
        ("{twin}", "10.244.0.6"),
        ("{pods}", "10.244.0.0/24"),
        ("{nowhere}", "198.51.100.7"),
    ],
};

pub const V6: Family = Family {
    name: "v6",
    restore: "ip6tables-restore",
    cidr: "fd00:10:244::/56",
    names: &[
        ("{client}", "2001:db8:1::2"),
        ("{other}", "2001:db8:1::66"),
        ("{others}", "2001:db8:1::40/122"),
        ("{clients}", "2001:db8:1::/64"),
        ("{node}", "2001:db8:1::1"),
        ("{pod}", "fd00:10:244::5"),
        ("{twin}", "fd00:10:244::6"),
        ("{pods}", "fd00:10:244::/64"),
        ("{nowhere}", "2001:db8:2::7"),
    ],
};

/// An address family, and the names of its addresses in the tables.
pub struct Family {
    pub name: &'static str,
    pub restore: &'static str,
    pub cidr: &'static str,
    names: &'static [(&'static str, &'static str)],
}

impl Family {
    pub fn substitute(&self, text: &str) -> String {
        let replace = |text: String, (name, address): &(&str, &str)| text.replace(name, address);
        self.names.iter().fold(text.to_owned(), replace)
    }

    pub fn address(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.substitute(name).parse().unwrap(), port)
    }
}

/// A connection or a datagram: source, destination and port.
struct Probe {
    name: &'static str,
    tcp: bool,
    from: &'static str,
    /// Source port from 4000 to 4999, not above 32767.
    low: bool,
    to: &'static str,
    port: u16,
}

const fn tcp(name: &'static str, from: &'static str, to: &'static str, port: u16) -> Probe {
    Probe {
        name,
        tcp: true,
        from,
        low: false,
        to,
        port,
    }
}

const PROBES: &[Probe] = &[
    tcp("web", "{client}", "{pod}", 80),
    tcp("alt", "{client}", "{pod}", 81),
    tcp("other", "{other}", "{pod}", 80),
    tcp("twin", "{client}", "{twin}", 80),
    Probe {
        low: true,
        ..tcp("low", "{client}", "{pod}", 82)
    },
    Probe {
        tcp: false,
        ..tcp("dns", "{client}", "{pod}", 53)
    },
    Probe {
        tcp: false,
        low: true,
        ..tcp("udp", "{client}", "{pod}", 80)
    },
    // from the Pod, received on the other interface
    tcp("back", "{pod}", "{client}", 80),
    // to the node: a listener at any address, a listener at this address
    tcp("any", "{client}", "{node}", 80),
    tcp("bound", "{client}", "{node}", 81),
];

/// Scripts, with the probes that are lost.
#[rustfmt::skip]
const LOSSES: &[(&str, &str)] = &[
    ("", ""),
    ("-A PREROUTING", ""),
    ("-A PREROUTING -j ACCEPT\n-A PREROUTING -p tcp -j DROP", ""),
    ("-A PREROUTING -j RETURN\n-A PREROUTING -p tcp -j DROP", ""),
    ("-A PREROUTING -s {pod} -j ACCEPT\n-A PREROUTING -p tcp --syn -j DROP", "web alt other twin low any bound"),
    // -p
    ("-A PREROUTING -p tcp -j DROP", "web alt other twin low back any bound"),
    ("-A PREROUTING -p udp -j DROP", "dns udp"),
    ("-A PREROUTING -p 17 -j DROP", "dns udp"),
    ("-A PREROUTING -p UDP --dport 53 -j DROP", "dns"),
    ("-A PREROUTING ! -p tcp -s {client} -j DROP", "dns udp"),
    // -4, -6, netmasks, counters
    ("-4 -A PREROUTING -p 6 -s 192.0.2.64/255.255.255.192 -j DROP\n-6 -A PREROUTING -p 6 -s 2001:db8:1::40/ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffc0 -j DROP", "other"),
    ("-A PREROUTING -s 192.0.2.66 -j DROP --ipv4\n[1:60] -A PREROUTING --ipv6 -s 2001:db8:1::66 -j DROP", "other"),
    ("-4 -6 -A PREROUTING -j DROP\n[7:420]-A PREROUTING -p udp -j DROP", "dns udp"),
    // -s, -d
    ("-A PREROUTING -s {other} -j DROP", "other"),
    ("-A PREROUTING -s {others} -j DROP", "other"),
    ("-A PREROUTING -s {nowhere},{others} -d {twin},{pod} -j DROP", "other"),
    ("-A PREROUTING -s {clients} -d {pods} -p tcp --syn -j DROP", "web alt other twin low"),
    ("-A PREROUTING -p tcp --syn ! -s {client} -j DROP", "other back"),
    ("-A PREROUTING -p tcp --syn ! -d {pods} -j DROP", "back any bound"),
    ("-A PREROUTING -d {twin} -j DROP", "twin"),
    ("-A PREROUTING -d {nowhere},{twin} -j DROP", "twin"),
    // -i
    ("-A PREROUTING -i pod -p tcp --syn -j DROP", "back"),
    ("-A PREROUTING ! -i pod -p udp -j DROP", "dns udp"),
    ("-A PREROUTING ! -i client -p tcp --syn -j DROP", "back"),
    ("-A PREROUTING -i po+ -p tcp --syn -j DROP", "back"),
    ("-A PREROUTING -i pod+ -p tcp --syn -j DROP", "back"),
    ("-A PREROUTING -i po -p tcp --syn -j DROP", ""),
    ("-A PREROUTING -i pod0 -p tcp --syn -j DROP", ""),
    ("-A PREROUTING ! -i c+ -p tcp --syn -j DROP", "back"),
    ("-A PREROUTING -i + -p udp -j DROP", "dns udp"),
    ("-A PREROUTING ! -i + -p udp -j DROP", ""),
    // ports
    ("-A PREROUTING -p tcp --dport 80 -j DROP", "web other twin back any"),
    ("-A PREROUTING -p udp --dport 80 -j DROP", "udp"),
    ("-A PREROUTING -p tcp --dport 81:82 -j DROP", "alt low bound"),
    ("-A PREROUTING -p tcp --syn ! --dport 80 -j DROP", "alt low bound"),
    ("-A PREROUTING -p tcp --syn ! --dport 80:81 -j DROP", "low"),
    ("-A PREROUTING -p tcp --sport 4000:4999 -j DROP", "low"),
    ("-A PREROUTING -p udp -m udp ! --sport 4000:4999 --dport 53 -j DROP", "dns"),
    ("-A PREROUTING -p tcp -m tcp --sport 32768:65535 --dport 80:82 -d {pod} -j DROP", "web alt other"),
    ("-A PREROUTING -p tcp -m multiport --dports 81,82 -j DROP", "alt low bound"),
    ("-A PREROUTING -p tcp -m multiport --dports 53,79:81 -j DROP", "web alt other twin back any bound"),
    ("-A PREROUTING -p tcp --syn -m multiport ! --dports 53,80 -j DROP", "alt low bound"),
    ("-A PREROUTING -p tcp -m multiport --sports 4000:4999,80 -d {pod} -j DROP", "low back"),
    ("-A PREROUTING -p udp -m multiport --ports 53,4000:4999 -j DROP", "dns udp"),
    ("-A PREROUTING -p udp -m multiport ! --ports 53,81 -j DROP", "udp"),
    ("-A PREROUTING -p tcp -m multiport --dports 80 -m multiport --sports 4000:4999 -j DROP", ""),
    // two matches of one module
    ("-A PREROUTING -p tcp --syn -m multiport ! --dports 80 -m multiport ! --dports 82 -j DROP", "alt bound"),
    ("-A PREROUTING -p tcp -m multiport --dports 79:81 -m multiport --dports 81:82 -j DROP", "alt bound"),
    ("-A PREROUTING -p tcp --syn -m tcp ! --dport 80 -m tcp ! --dport 82 -j DROP", "alt bound"),
    ("-A PREROUTING -d {pod} -p udp ! --dport 53 -m udp ! --dport 81 -j DROP", "udp"),
    ("-A PREROUTING -p tcp --syn -d {twin} -m tcp --tcp-flags ACK NONE -j DROP", "twin"),
    ("-A PREROUTING -p tcp --dport 81:82 -j MARK --set-mark 0x51\n-A PREROUTING -p tcp --dport 82 -j MARK --set-mark 0x52\n-A PREROUTING -m mark --mark 0x50/0x50 -m mark ! --mark 0x2/0x2 -j DROP", "alt bound"),
    ("-A PREROUTING -m comment --comment \"cali:abc\" -p udp -m comment --comment text -j DROP", "dns udp"),
    ("-A PREROUTING -p tcp --syn -m socket --nowildcard -m socket -j DROP", "bound"),
    ("-A PREROUTING -p tcp --syn -m socket --nowildcard -m socket --transparent -j DROP", ""),
    // flags
    ("-A PREROUTING -p tcp --syn -j DROP", "web alt other twin low back any bound"),
    ("-A PREROUTING -p tcp ! --syn -d {twin} -j DROP", "twin"),
    ("-A PREROUTING -p tcp --tcp-flags ALL SYN -d {twin} -j DROP", "twin"),
    ("-A PREROUTING -p tcp --tcp-flags SYN,ACK SYN,ACK -s {twin} -j DROP", "twin"),
    ("-A PREROUTING -p tcp --tcp-flags SYN,ACK SYN,ACK -d {twin} -j DROP", ""),
    ("-A PREROUTING -p tcp --tcp-flags PSH,RST PSH -d {twin} -j DROP", "twin"),
    ("-A PREROUTING -p tcp ! --tcp-flags SYN,RST NONE -d {twin} -j DROP", "twin"),
    ("-A PREROUTING -p tcp --tcp-flags ALL NONE -j DROP", ""),
    ("-A PREROUTING -p tcp --tcp-flags NONE NONE -d {twin} -j DROP", "twin"),
    // marks
    ("-A PREROUTING -p tcp --dport 81 -j MARK --set-mark 0x50\n-A PREROUTING -m mark --mark 0x50 -j DROP", "alt bound"),
    ("-A PREROUTING -p tcp --dport 81 -j MARK --set-mark 0x50\n-A PREROUTING -p tcp --syn -m mark ! --mark 0x50 -j DROP", "web other twin low back any"),
    ("-A PREROUTING -p tcp --dport 81 -j MARK --set-mark 0x50\n-A PREROUTING -m mark --mark 0x40/0x40 -j DROP", "alt bound"),
    ("-A PREROUTING -p tcp --dport 81 -j MARK --set-mark 0x50\n-A PREROUTING -m mark --mark 0x50/0x40 -j DROP", ""),
    ("-A PREROUTING -p tcp --dport 81 -j MARK --set-mark 0x50\n-A PREROUTING -p udp -m mark ! --mark 0x50/0x40 -j DROP", "dns udp"),
    ("-A PREROUTING -j MARK --set-mark 0x5\n-A PREROUTING -j MARK --set-mark 0x6/0x3\n-A PREROUTING -p udp -m mark --mark 0x6 -j DROP\n-A PREROUTING -j MARK --set-mark 0", "dns udp"),
    ("-A PREROUTING -j MARK --set-mark 0x5\n-A PREROUTING -j MARK --set-xmark 0x6/0x3\n-A PREROUTING -p udp -m mark --mark 0x2 -j DROP\n-A PREROUTING -j MARK --set-mark 0", "dns udp"),
    ("-A PREROUTING -j MARK --set-mark 0xf0\n-A PREROUTING -j MARK --set-xmark 0x20\n-A PREROUTING -p udp -m mark --mark 0x20 -j DROP", "dns udp"),
    ("-A PREROUTING -j MARK --set-mark 0xf0\n-A PREROUTING -p udp -m mark --mark 0x0/0xf -j DROP", "dns udp"),
    // a rule that is tried twice toggles its bit twice
    ("-A PREROUTING -p tcp --dport 80 -j MARK --set-xmark 0x10/0x0\n-A PREROUTING -p tcp --dport 80:81 -j MARK --set-xmark 0x10/0x0\n-A PREROUTING -m mark --mark 0x10 -j DROP", "alt bound"),
    ("-A PREROUTING -p tcp -m multiport --ports 80:82 -j MARK --set-xmark 0x10/0x0\n-A PREROUTING -p tcp -m multiport --ports 4000:4999 -j MARK --set-xmark 0x10/0x0\n-A PREROUTING -p tcp --syn -m mark --mark 0x10 -j DROP", "web alt other twin back any bound"),
    // addresses of the node
    ("-A PREROUTING -m addrtype --dst-type LOCAL -p tcp -j DROP", "any bound"),
    ("-A PREROUTING -m addrtype ! --dst-type LOCAL -p tcp --syn -s {client} -j DROP", "web alt twin low"),
    ("-A PREROUTING -m addrtype --src-type LOCAL -j DROP", ""),
    ("-A PREROUTING -m addrtype ! --src-type LOCAL --dst-type LOCAL -p tcp -j DROP", "any bound"),
    ("-A PREROUTING -m addrtype ! --dst-type LOCAL -m addrtype --dst-type LOCAL -j DROP", ""),
    // what the node sends
    ("-A OUTPUT -p tcp --sport 80 -j DROP", "any"),
    ("-A OUTPUT -p tcp -m multiport --sports 80:82 -m addrtype --src-type LOCAL -d {client} -j DROP", "any bound"),
    (":X - [0:0]\n-A OUTPUT -p tcp -j X\n-A X -p tcp --sport 81 -j RETURN\n-A X -d {client} -j DROP", "any"),
    (":X - [0:0]\n-A OUTPUT -j X\n-A X -i + -p tcp --sport 80 -d {client} -j DROP", "any"),
    (":X - [0:0]\n-A OUTPUT -j X\n-A X ! -i + -p tcp --sport 80 -d {client} -j DROP", ""),
    // marks of connections: the second packet of a connection has that of the first
    ("-A PREROUTING -p tcp --syn --dport 81 -j CONNMARK --set-mark 0x50\n-A PREROUTING -p tcp ! --syn -m connmark --mark 0x50 -j DROP", "alt bound"),
    ("-A PREROUTING -p tcp --syn --dport 80:82 -j CONNMARK --set-xmark 0x50/0x50\n-A PREROUTING -p tcp --syn --dport 82 -j CONNMARK --set-xmark 0x2/0x2\n-A PREROUTING -m connmark --mark 0x50/0x50 -m connmark ! --mark 0x2/0x2 -s {client} -j DROP", "web alt twin back any bound"),
    ("-A PREROUTING -p tcp --dport 81 -j CONNMARK --set-mark 0x1\n-A OUTPUT -m connmark --mark 0x1 -j DROP", "bound"),
    ("-A PREROUTING -p tcp --dport 81 -j MARK --set-mark 0x10\n-A PREROUTING -m connmark --mark 0x10 -j DROP", ""),
    ("-A PREROUTING -p tcp --dport 81 -j MARK --set-mark 0x10\n-A PREROUTING -j CONNMARK --set-mark 0x20\n-A PREROUTING -m mark --mark 0x10 -m connmark --mark 0x20 -j DROP", "alt bound"),
    // sockets of the node
    ("-A PREROUTING -p tcp -m socket --nowildcard -j DROP", "web other twin back any bound"),
    ("-A PREROUTING -p tcp -m socket -j DROP", "any bound"),
    ("-A PREROUTING -p tcp --syn -m socket --nowildcard -j DROP", "web other twin back any bound"),
    ("-A PREROUTING -p tcp --syn -m socket -j DROP", "bound"),
    ("-A PREROUTING -p tcp --syn -m socket --transparent -j DROP", ""),
    ("-A PREROUTING -p tcp --syn -m socket --nowildcard -j RETURN\n-A PREROUTING -p tcp --syn -d {node} -j DROP", ""),
    ("-A PREROUTING -p tcp --syn -m socket -j ACCEPT\n-A PREROUTING -p tcp --syn -d {node} -j DROP", "any"),
    // user chains
    (":X - [0:0]\n-A X -j DROP", ""),
    ("-N X\n-A PREROUTING -p udp -j X\n[0:0] -N Y\n-A X -j Y\n-A Y -p udp --dport 53 -j DROP", "dns"),
    (":X - [0:0]\n-A PREROUTING -p udp -j X\n-A X -j DROP", "dns udp"),
    (":X - [0:0]\n-A PREROUTING -p udp -j X\n-A PREROUTING -p udp -j DROP\n-A X -j ACCEPT", ""),
    (":X - [0:0]\n-A PREROUTING -p udp -j X\n-A PREROUTING -p udp -j DROP\n-A X -p udp --dport 53 -j RETURN\n-A X -j ACCEPT", "dns"),
    (":X - [0:0]\n-A PREROUTING -p udp -j X\n-A PREROUTING -p udp --dport 80 -j DROP\n-A X -p udp --dport 53 -j DROP", "dns udp"),
    (":X - [0:0]\n:Y - [0:0]\n-A PREROUTING -p udp -j X\n-A X -j Y\n-A X -p udp --dport 53 -j DROP\n-A Y -p udp --dport 80 -j ACCEPT\n-A Y -j RETURN\n-A Y -j DROP", "dns"),
    (":X - [0:0]\n-A PREROUTING -p udp --dport 53 -j X\n-A PREROUTING -p udp --dport 80 -j X\n-A X -j MARK --set-xmark 0x10/0x0\n-A PREROUTING -m mark --mark 0x10 -j DROP", "dns udp"),
    (":X - [0:0]\n-A PREROUTING -p udp -d {pod} -j X\n-A PREROUTING -p udp --dport 53 -j X\n-A X -j MARK --set-xmark 0x10/0x0\n-A PREROUTING -m mark --mark 0x10 -j DROP", "udp"),
    (":X - [0:0]\n-A PREROUTING -p udp -j X\n-A X", ""),
];

/// Scripts, with the probes that the listener gets.
#[rustfmt::skip]
const CAPTURES: &[(&str, &str)] = &[
    ("-A PREROUTING -p tcp -d {twin} -j TPROXY --on-port 1 --on-ip ${ON_IP} --tproxy-mark 0x1/0x1", "twin"),
    ("-A PREROUTING -p tcp --dport 81:82 -d {pods} -j TPROXY --on-port 1 --on-ip ${ON_IP} --tproxy-mark 1", "alt low"),
    ("-A PREROUTING -p tcp -d {pods} ! -s {client} -j TPROXY --on-port 1 --on-ip ${ON_IP} --tproxy-mark ${MARK}\n-A PREROUTING -p tcp -j DROP -s {other}", "other"),
    ("-A PREROUTING -p tcp -d {twin} --syn -j TPROXY --on-port 1 --on-ip ${ON_IP} --tproxy-mark ${MARK}\n-A PREROUTING -p tcp -m socket --transparent -j MARK --set-mark 0x1/0x1", "twin"),
    (":X - [0:0]\n-A PREROUTING -p tcp -d {pods} -j X\n-A X -p tcp --dport 80 -j RETURN\n-A X -p tcp --sport 80 -j RETURN\n-A X -p tcp -j TPROXY --on-port 1 --on-ip ${ON_IP} --tproxy-mark ${MARK}", "alt low"),
    ("-A PREROUTING -p tcp -m multiport --ports 81,4000:4999 -d {pods} -j TPROXY --on-port 1 --on-ip ${ON_IP} --tproxy-mark ${MARK}", "alt low"),
];

impl Probe {
    /// What answers: the Pod (`pod`), the program (`captured`), or nothing in time (`lost`).
    fn send(
        &self,
        lab: &Lab,
        family: &Family,
        source_port: u16,
        patience: Duration,
    ) -> &'static str {
        let from = if self.from == "{pod}" {
            &lab.pod
        } else {
            &lab.client
        };
        let source = family.address(self.from, if self.low { source_port } else { 0 });
        let to = family.address(self.to, self.port);
        from.enter(|| match self.tcp {
            true => send_request(source, to, patience),
            false => send_datagram(source, to, patience),
        })
        .unwrap_or("lost")
    }
}

pub fn send_request(
    from: SocketAddr,
    to: SocketAddr,
    patience: Duration,
) -> std::io::Result<&'static str> {
    let mut stream = connect_from(from, to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = [0; 4096];
    let mut length = 0;
    while length < answer.len() {
        let text = String::from_utf8_lossy(&answer[..length]);
        if text.ends_with("pod") {
            return Ok("pod");
        }
        if text.contains("Request received from probe") {
            return Ok("captured");
        }
        match stream.read(&mut answer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok("lost")
}

pub fn send_datagram(
    from: SocketAddr,
    to: SocketAddr,
    patience: Duration,
) -> std::io::Result<&'static str> {
    is_echoed(from, to, patience).map(|echoed| if echoed { "pod" } else { "lost" })
}

/// A lab with the servers of all probes.
fn lab(family: &Family) -> Lab {
    let lab = Lab::new();
    let add = |namespace: &Namespace, name: &str| {
        let address = family.address(name, 0).ip();
        // Without nodad an address is tentative at first, and cannot be bound to.
        let (length, flag) = if address.is_ipv4() {
            (24, "")
        } else {
            (64, "nodad")
        };
        namespace.run(&format!(
            "ip address add {address}/{length} dev eth0 {flag}"
        ));
    };
    add(&lab.client, "{other}");
    add(&lab.pod, "{twin}");
    for port in [80, 81, 82] {
        lab.pod.serve(port);
    }
    for port in [53, 80] {
        lab.pod.serve_udp(port);
    }
    lab.client.serve(80);
    lab.node.serve(80);
    lab.node.serve_at(family.address("{node}", 81));
    lab
}

/// Outcomes of the probes with the script loaded by `loader`; a probe that is expected to be lost has a short
/// time-out.
fn outcome(
    loader: Loader,
    family: &Family,
    lab: &Lab,
    script: &str,
    expected: &Outcome,
) -> Result<Outcome, String> {
    static SOURCE_PORT: AtomicU16 = AtomicU16::new(0);
    let file = ScriptFile::new(&with_idle(&family.substitute(script)));
    let options = ["--cidr", family.cidr, "--rules", file.path()];
    let mut daemon = None;
    match loader {
        Loader::Ours => {
            let ours = daemon.insert(lab.spawn(&options));
            let line = ours.wait_for("table inet tproxy-pod");
            if !line.contains("Created table") {
                return Err(ours.wait_for(" ERROR "));
            }
        }
        Loader::Iptables => restore(lab, family.name, &options, family.restore),
    }
    let source_port = 4000 + SOURCE_PORT.fetch_add(1, Ordering::Relaxed) % 1000;
    let outcome = thread::scope(|scope| {
        let probes: Vec<_> = PROBES
            .iter()
            .map(|probe| {
                let patience = match expected.get(probe.name) {
                    Some(&"lost") => LOSS_TIME_OUT,
                    _ => *PATIENCE,
                };
                scope.spawn(move || (probe.name, probe.send(lab, family, source_port, patience)))
            })
            .collect();
        probes
            .into_iter()
            .map(|probe| probe.join().unwrap())
            .collect()
    });
    if let Some(mut daemon) = daemon {
        daemon.stop();
    }
    Ok(outcome)
}

/// Outcome of each probe.
type Outcome = BTreeMap<&'static str, &'static str>;

/// Every probe is answered by the destination, except the named ones.
fn all_but(names: &str, verdict: &'static str) -> Outcome {
    let is_named = |probe: &Probe| names.split_whitespace().any(|name| name == probe.name);
    PROBES
        .iter()
        .map(|probe| (probe.name, if is_named(probe) { verdict } else { "pod" }))
        .collect()
}

/// Number of labs that share a table.
const LABS: usize = 8;

/// Differences between a loader's outcomes and the table.
fn differences(
    loader: Loader,
    family: &Family,
    table: &[(&str, &str)],
    verdict: &'static str,
) -> Vec<String> {
    let try_some = |some: &[(&str, &str)]| -> Vec<String> {
        let lab = lab(family);
        let idle = ScriptFile::new(&whole(IDLE));
        let _listener = match loader {
            Loader::Ours => None,
            Loader::Iptables => Some(lab.start(&["--cidr", family.cidr, "--rules", idle.path()])),
        };
        let difference = |(script, names): &(&str, &str)| {
            let expected = all_but(names, verdict);
            match outcome(loader, family, &lab, script, &expected) {
                Ok(outcome) if outcome == expected => None,
                Ok(mut outcome) => {
                    outcome.retain(|name, verdict| expected[name] != *verdict);
                    Some(format!("{loader:?}: {script}: {outcome:?}"))
                }
                Err(error) => Some(format!("{loader:?}: {script}: {error}")),
            }
        };
        some.iter().filter_map(difference).collect()
    };
    thread::scope(|scope| {
        let shares: Vec<_> = table
            .chunks(table.len().div_ceil(LABS))
            .map(|share| scope.spawn(|| try_some(share)))
            .collect();
        shares
            .into_iter()
            .flat_map(|share| share.join().unwrap())
            .collect()
    })
}

/// Asserts that both loaders have the outcomes of the table.
fn assert_agree(family: &Family, table: &[(&str, &str)], verdict: &'static str) {
    let mut all = differences(Loader::Iptables, family, table, verdict);
    all.extend(differences(Loader::Ours, family, table, verdict));
    assert_eq!(all, [""; 0]);
}

#[test]
fn over_ipv4_both_loaders_lose_the_same_packets() {
    assert_agree(&V4, LOSSES, "lost");
}

#[test]
fn over_ipv6_both_loaders_lose_the_same_packets() {
    assert_agree(&V6, LOSSES, "lost");
}

#[test]
fn over_ipv4_both_loaders_capture_the_same_packets() {
    assert_agree(&V4, CAPTURES, "captured");
}

#[test]
fn over_ipv6_both_loaders_capture_the_same_packets() {
    assert_agree(&V6, CAPTURES, "captured");
}

#[test]
fn a_rule_is_tried_once_for_every_block_of_its_list() {
    let toggle = "-A PREROUTING -p tcp --syn -s {clients},{others} -j MARK --set-xmark 0x10/0x0\n\
                  -A PREROUTING -m mark --mark 0x10 -j DROP";
    assert_agree(&V4, &[(toggle, "web alt twin low any bound")], "lost");
}

const NO_LISTENER: &str = "-A PREROUTING -d {twin} -p tcp --syn -j TPROXY --on-ip ${ON_IP} --on-port 9 --tproxy-mark ${MARK}";

#[test]
fn without_a_listener_our_loader_lets_a_connection_pass_on_to_the_pod() {
    for family in [&V4, &V6] {
        assert_eq!(
            differences(Loader::Ours, family, &[(NO_LISTENER, "")], "lost"),
            [""; 0]
        );
    }
}

#[test]
fn without_a_listener_iptables_loses_a_connection() {
    for family in [&V4, &V6] {
        assert_eq!(
            differences(Loader::Iptables, family, &[(NO_LISTENER, "twin")], "lost"),
            [""; 0]
        );
    }
}
