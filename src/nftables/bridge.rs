//! The table `bridge tproxy-pod`: redirects captured frames from a bridge to the host's IP stack, where the
//! rules of the scripts see them. Without it two Pods of one bridge talk below IP, and are not captured.
//!
//! As with ebtables' `redirect` target, a redirected frame gets the MAC address of the port by which it
//! came in: a bridge passes a frame with the address of one of its ports to IP (`br_fdb_add_local`,
//! net/bridge/br_fdb.c). There is no NAT.
//! Connections that are older than the table, or that the Pod itself answers, stay on the bridge.
//!
//! A client's frame passes these chains; the names of chains and sets end in `-v4` or `-v6`:
//!
//! ```text
//! chain        a frame                                        goes to
//! PREROUTING   for a captured address and port                senders
//! senders      whose answer finds its way back by IP: its     states
//!              source is in a subnet of a bridge
//! states       that is a SYN                                  handshakes
//!              of a connection in one of the sets             the bridge or IP, by the table below
//! handshakes   any (during a stop the chain is empty)         IP; the connection enters syn-seen
//! ```
//!
//! The state of a connection is the set that holds its addresses and ports. A connection in no set stays
//! on the bridge, and so does a connection that finds its set full.
//!
//! ```text
//! set            entered when the             left                       other frames of the client
//! syn-seen       client sends a SYN           after 10 s; after 1 s if   are redirected, and the
//!                                             another set is entered     connection enters established
//! pod-answered   Pod sends a SYN-ACK to a     after 2 s                  stay on the bridge, unless the
//!                connection in syn-seen                                  connection is in established, too
//! established    client sends a frame after   after 240 s without PSH,   are redirected
//!                the SYN, with the connec-    or 20 s after FIN or RST
//!                tion in syn-seen alone
//! ```
//!
//! If `established` is full, the connection stays in `syn-seen`, 240 s after each frame.
//!
//! An ICMP error for a captured address passes the chain `errors`: it is redirected if the packet inside
//! belongs to a connection whose frames are.

use std::ops::RangeInclusive;

use crate::nftables::connections::{
    self, HANDSHAKE_TIMEOUT, is_in, is_not_in, load_client_key, server_key, update,
};
use crate::nftables::expression::Expression;
use crate::nftables::matches;
use crate::nftables::nft::{self, TYPE_IFINDEX};
use crate::nftables::ruleset::{Hook, MapElements, NamedSet, REDIRECTED_TAG, Ruleset, SetKind};
use crate::routing::bridges::BridgeTopology;
use crate::rules::rule::{AddressOf, Match, PortOf, Protocol, Ranges, Test, merge};
use crate::rules::script::PREROUTING;
use crate::rules::tcp::{ACK, FIN, PSH, RST, SYN};
use crate::selectors::{Cidr, Family, PortRange, families};

/// Time-out of a connection in `syn-seen` once it is in another set, in seconds
const DECIDED_TIMEOUT: u32 = 1;
/// Time-out of a connection in `pod-answered`, in seconds: longer than what is left in `syn-seen`
const POD_ANSWERED_TIMEOUT: u32 = 2;
/// Time-out of a connection after a frame with PSH, in seconds. Between two such frames a client sends the rest of
/// a request, and waits for its response and then for its next request: all deadlines of the server together are
/// shorter
pub const ESTABLISHED_TIMEOUT: u32 = 240;
/// Time-out of a connection after FIN or RST, in seconds: acknowledgements and retransmissions follow
const CLOSED_TIMEOUT: u32 = 20;

/// The types of ICMP errors: 3, 11 and 12 of RFC 792
const ICMP_ERRORS: [RangeInclusive<u128>; 2] = [3..=3, 11..=12];
/// The types of ICMPv6 errors that are defined (RFC 4443, 2.1)
const ICMPV6_ERRORS: [RangeInclusive<u128>; 1] = [1..=4];

/// Most connections in `syn-seen` and in `pod-answered`; each takes about 100 bytes of the kernel
const HANDSHAKES_SIZE: u32 = 65_536;
/// Most connections in `established`
const ESTABLISHED_SIZE: u32 = 262_144;

/// After the chains that filter frames, before br_netfilter, which runs the IP hooks for frames that
/// stay on the bridge
const PRIORITY: i32 = libc::NF_BR_PRI_BRNF - 1;

/// `PACKET_HOST` (linux/if_packet.h): the frame is for this host
const PACKET_HOST: u8 = 0;

/// `ETH_P_IP`, `ETH_P_IPV6` (linux/if_ether.h)
fn ether_type(family: Family) -> u16 {
    match family {
        Family::V4 => libc::ETH_P_IP as u16,
        Family::V6 => libc::ETH_P_IPV6 as u16,
    }
}

/// The map from the ports of bridges to their MAC addresses.
const PORTS: &str = "ports";

/// The rules that redirect frames to captured destinations.
#[derive(Clone, Debug)]
pub struct BridgeRedirect {
    /// The captured addresses of each family.
    addresses: Vec<(Family, Ranges)>,
    /// The captured ports.
    dports: Ranges,
}

impl BridgeRedirect {
    /// The rules for these destinations.
    pub fn new(cidrs: &[Cidr], dports: &[PortRange]) -> BridgeRedirect {
        let of = |family| {
            let cidrs = cidrs.iter().filter(|cidr| cidr.family() == family);
            (family, merge(cidrs.map(Cidr::range).collect()))
        };
        BridgeRedirect {
            addresses: families(cidrs).map(of).collect(),
            dports: merge(dports.iter().map(PortRange::range).collect()),
        }
    }

    /// The families of the captured addresses.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        self.addresses.iter().map(|(family, _)| *family)
    }

    /// The whole table, for an empty one.
    pub fn table(&self, bridges: &BridgeTopology) -> Ruleset {
        let mut ruleset = Ruleset::default();
        ruleset.add_base_chain(PREROUTING, Hook::prerouting(PRIORITY));
        ruleset.named_sets.push(NamedSet {
            name: PORTS.to_owned(),
            key_type: TYPE_IFINDEX,
            key_length: 4,
            kind: SetKind::EtherMap,
        });
        for (family, addresses) in &self.addresses {
            let of_family = FamilyNames::new(*family);
            of_family.add_chains_and_sets(&mut ruleset);
            of_family.add_states(&mut ruleset);
            of_family.add_errors(&mut ruleset);
            of_family.add_prerouting(&mut ruleset, addresses, &self.dports);
            of_family.add_prerouting_of_errors(&mut ruleset, addresses);
        }
        self.add_bridges(&mut ruleset, bridges);
        ruleset
    }

    /// The change of the table when the bridges have changed.
    pub fn changed_bridges(&self, bridges: &BridgeTopology) -> Ruleset {
        let mut ruleset = Ruleset::default();
        let chains = self.families().map(|it| FamilyNames::new(it).senders);
        ruleset.flushed_chains.extend(chains);
        self.add_bridges(&mut ruleset, bridges);
        ruleset
    }

    /// The change of the table when a stop begins: no new connection is redirected.
    pub fn draining(&self) -> Ruleset {
        let mut ruleset = Ruleset::default();
        let chains = self.families().map(|it| FamilyNames::new(it).handshakes);
        ruleset.flushed_chains.extend(chains);
        ruleset
    }

    /// The rules of the chains `senders`, and the ports.
    fn add_bridges(&self, ruleset: &mut Ruleset, bridges: &BridgeTopology) {
        for family in self.families() {
            let FamilyNames {
                senders, states, ..
            } = FamilyNames::new(family);
            let jump = [Expression::Jump(states)];
            let subnets = bridges.subnets.iter().filter(|it| it.family() == family);
            let sources = merge(subnets.map(Cidr::range).collect());
            if !sources.is_empty() {
                let source = nft::source_address(family);
                let is_sender = matches::in_ranges(source, &sources, false);
                ruleset.append(&senders, &[&is_sender, &jump]);
            }
        }
        ruleset.map = Some(MapElements {
            map: PORTS.to_owned(),
            elements: bridges.ports.clone(),
        });
    }
}

/// The names of the chains and sets of one family.
struct FamilyNames {
    family: Family,
    senders: String,
    states: String,
    handshakes: String,
    errors: String,
    syn_seen: String,
    pod_answered: String,
    established: String,
}

impl FamilyNames {
    fn new(family: Family) -> FamilyNames {
        let name = |name| format!("{name}{}", family.suffix());
        FamilyNames {
            family,
            senders: name("senders"),
            states: name("states"),
            handshakes: name("handshakes"),
            errors: name("errors"),
            syn_seen: connections::syn_seen(family),
            pod_answered: name("pod-answered"),
            established: name("established"),
        }
    }

    fn add_chains_and_sets(&self, ruleset: &mut Ruleset) {
        for chain in [&self.senders, &self.states, &self.handshakes, &self.errors] {
            ruleset.add_chain(chain);
        }
        for (name, size) in [
            (&self.syn_seen, HANDSHAKES_SIZE),
            (&self.pod_answered, HANDSHAKES_SIZE),
            (&self.established, ESTABLISHED_SIZE),
        ] {
            let set = connections::new_set(name, self.family, size);
            ruleset.named_sets.push(set);
        }
    }

    /// The rules that every frame passes: as few as possible.
    fn add_prerouting(&self, ruleset: &mut Ruleset, addresses: &Ranges, ports: &Ranges) {
        let to_captured = [
            Test::Protocol(Protocol::Tcp),
            Test::Ports(PortOf::Destination, ports.clone()),
            Test::Address(AddressOf::Destination, addresses.clone()),
        ];
        let is_syn_ack_of_pod = [
            Test::Protocol(Protocol::Tcp),
            flags(SYN | ACK, SYN | ACK),
            Test::Ports(PortOf::Source, ports.clone()),
            Test::Address(AddressOf::Source, addresses.clone()),
        ];
        let pod_answered = [
            Expression::Concatenation(server_key(self.family).into()),
            is_in(&self.syn_seen),
            update(&self.syn_seen, DECIDED_TIMEOUT),
            update(&self.pod_answered, POD_ANSWERED_TIMEOUT),
        ];
        let jump = [Expression::Jump(self.senders.clone())];
        self.add_frame_rule(ruleset, to_captured.into(), &jump);
        self.add_frame_rule(ruleset, is_syn_ack_of_pod.into(), &pod_answered);
    }

    /// The rule for ICMP errors, which an address and not a port selects.
    fn add_prerouting_of_errors(&self, ruleset: &mut Ruleset, addresses: &Ranges) {
        let is_icmp_to_captured = [
            Test::Protocol(Protocol::icmp_of(self.family)),
            Test::Address(AddressOf::Destination, addresses.clone()),
        ];
        let types = match self.family {
            Family::V4 => ICMP_ERRORS.to_vec(),
            Family::V6 => ICMPV6_ERRORS.to_vec(),
        };
        let is_error = matches::in_ranges(nft::icmp_type(self.family), &types, false);
        let jump = [Expression::Jump(self.errors.clone())];
        let action = [is_error.as_slice(), &jump].concat();
        self.add_frame_rule(ruleset, is_icmp_to_captured.into(), &action);
    }

    /// Appends a rule for frames of this family that pass the tests.
    fn add_frame_rule(&self, ruleset: &mut Ruleset, tests: Vec<Test>, action: &[Expression]) {
        let is_family = [
            Expression::Payload(nft::ETHER_TYPE),
            Expression::equals(ether_type(self.family).to_be_bytes().into()),
        ];
        let tests: Vec<Match> = tests.into_iter().map(Match::from).collect();
        let tests = matches::expressions(&tests, self.family);
        ruleset.append(PREROUTING, &[&is_family, &tests, action]);
    }

    /// The rules for the states in the head of this file. Frames of a device that is not in the map of
    /// ports stay on the bridge.
    fn add_states(&self, ruleset: &mut Ruleset) {
        let test = |it: Match| matches::expressions(&[it], self.family);
        let is_syn = test(Test::SYN.into());
        let has_fin_or_rst = test(any_of(FIN | RST));
        let has_psh = test(any_of(PSH));
        let (syn_seen, established) = (&self.syn_seen, &self.established);
        let load = [
            Expression::MapInputDevice(PORTS.to_owned()),
            load_client_key(self.family),
        ];
        let is_established = [is_in(established)];
        let is_syn_seen = [is_in(syn_seen), is_not_in(&self.pod_answered)];
        let establish = [
            update(established, ESTABLISHED_TIMEOUT),
            update(syn_seen, DECIDED_TIMEOUT),
        ];
        let renew = [update(established, ESTABLISHED_TIMEOUT)];
        let close = [update(established, CLOSED_TIMEOUT)];
        let enter = [update(syn_seen, HANDSHAKE_TIMEOUT)];
        let stay = [update(syn_seen, ESTABLISHED_TIMEOUT)];
        let jump = [Expression::Jump(self.handshakes.clone())];
        let redirect = redirect();
        let mut rule = |parts: &[&[Expression]]| ruleset.append(&self.states, parts);
        rule(&[&is_syn, &jump]);
        rule(&[&has_fin_or_rst, &load, &is_established, &close, &redirect]);
        rule(&[&has_psh, &load, &is_established, &renew, &redirect]);
        rule(&[&load, &is_established, &redirect]);
        rule(&[&load, &is_syn_seen, &establish, &redirect]);
        // The rule above has ended because `established` is full.
        rule(&[&load, &is_syn_seen, &stay, &redirect]);
        ruleset.append(&self.handshakes, &[&load, &enter, &redirect]);
    }

    /// The rules for ICMP errors: the packet inside is one of the server's.
    fn add_errors(&self, ruleset: &mut Ruleset) {
        let key = server_key(self.family);
        let key = key.map(|field| nft::in_icmp_error(field, self.family));
        let load = [
            Expression::MapInputDevice(PORTS.to_owned()),
            Expression::Concatenation(key.into()),
        ];
        let is_established = [is_in(&self.established)];
        let is_syn_seen = [is_in(&self.syn_seen), is_not_in(&self.pod_answered)];
        let redirect = redirect();
        ruleset.append(&self.errors, &[&load, &is_established, &redirect]);
        ruleset.append(&self.errors, &[&load, &is_syn_seen, &redirect]);
    }
}

/// Passes the frame to the host's IP stack. The tag tells the rules of the scripts that it was redirected.
fn redirect() -> [Expression; 4] {
    let tag = REDIRECTED_TAG.to_ne_bytes();
    [
        Expression::SetEtherDestination,
        Expression::SetMeta(libc::NFT_META_PKTTYPE, vec![PACKET_HOST]),
        Expression::SetMeta(libc::NFT_META_PRIORITY, tag.into()),
        Expression::Verdict(libc::NF_ACCEPT),
    ]
}

/// Of the flags in `mask`, exactly those in `set` are set.
fn flags(mask: u8, set: u8) -> Test {
    Test::TcpFlags { mask, set }
}

/// At least one of these flags is set.
fn any_of(mask: u8) -> Match {
    let (negated, test) = (true, flags(mask, 0));
    Match { negated, test }
}
