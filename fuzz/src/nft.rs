//! Evaluates compiled rules for a packet, step by step as the kernel does (net/netfilter/nft_*.c).

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use tproxy_pod::nftables::connections;
use tproxy_pod::nftables::expression::{Expression, NFT_SOCKET_TRANSPARENT, NFT_SOCKET_WILDCARD};
use tproxy_pod::nftables::nft::Field;
use tproxy_pod::nftables::ruleset::REDIRECTED_TAG;
use tproxy_pod::nftables::ruleset::{CompiledRule, Ruleset};
use tproxy_pod::rules::rule::AddressOf;
use tproxy_pod::rules::script::{OUTPUT, PREROUTING};
use tproxy_pod::selectors::Family;
use tproxy_pod::selectors::Mark;

use crate::packet::{BUDGET, Fate, Packet, address};

/// A ruleset that is ready to run.
pub struct Machine<'r> {
    chains: HashMap<&'r str, Vec<&'r CompiledRule>>,
}

/// Control flow after a step.
enum Flow {
    /// Next step.
    On,
    /// Next rule (`NFT_BREAK`).
    NextRule,
    /// Return to the calling chain.
    Return,
    /// End of the evaluation: the packet is accepted or dropped.
    End(bool),
}

impl<'r> Machine<'r> {
    /// Sorts the rules by chain; each chain has to be there once.
    pub fn new(ruleset: &'r Ruleset) -> Machine<'r> {
        let mut chains: HashMap<&str, Vec<&CompiledRule>> = HashMap::new();
        for chain in ruleset.chains.iter().map(|chain| chain.name.as_str()) {
            assert!(chain.len() < 128, "NFT_CHAIN_MAXNAMELEN: {chain}");
            assert!(chains.insert(chain, Vec::new()).is_none(), "{chain} twice");
        }
        for rule in &ruleset.rules {
            let chain = chains.get_mut(rule.chain.as_str());
            chain.expect("rules are in chains").push(rule);
            for step in &rule.expressions {
                if let Expression::Lookup { ranges, .. } = step {
                    let apart = |two: &[RangeInclusive<u128>]| two[0].end() < two[1].start();
                    assert!(ranges.windows(2).all(apart), "{step:?}");
                }
            }
        }
        Machine { chains }
    }

    /// Verdict for a packet; `None` if too many rules would have to be tried.
    pub fn fate(&self, packet: &Packet) -> Option<Fate> {
        let mut run = Run {
            machine: self,
            packet: packet.clone(),
            register: Vec::new(),
            listener: None,
            is_tagged: false,
            budget: 3 * BUDGET,
        };
        let start = if packet.is_sent { OUTPUT } else { PREROUTING };
        let accepted = match self.chains.contains_key(start) {
            true => run.chain(start)?.unwrap_or(true),
            false => true,
        };
        Some(Fate {
            accepted,
            mark: run.packet.mark,
            connection_mark: run.packet.connection_mark,
            is_tagged: run.is_tagged,
            listener: run.listener,
            is_remembered: run.packet.is_remembered,
        })
    }
}

struct Run<'m, 'r> {
    machine: &'m Machine<'r>,
    packet: Packet,
    register: Vec<u8>,
    listener: Option<(Option<IpAddr>, u16)>,
    is_tagged: bool,
    budget: usize,
}

impl Run<'_, '_> {
    fn chain(&mut self, name: &str) -> Option<Option<bool>> {
        let rules = self.machine.chains.get(name).expect("jumps lead to chains");
        'rules: for rule in rules {
            self.budget = self.budget.checked_sub(1)?;
            for step in &rule.expressions {
                match self.step(step)? {
                    Flow::On => {}
                    Flow::NextRule => continue 'rules,
                    Flow::Return => return Some(None),
                    Flow::End(accepted) => return Some(Some(accepted)),
                }
            }
        }
        Some(None)
    }

    fn step(&mut self, step: &Expression) -> Option<Flow> {
        let holds = match step {
            Expression::Compare { negated, data } => {
                assert!(!data.is_empty() && data.len() <= self.register.len());
                self.register.starts_with(data) != *negated
            }
            Expression::Range { negated, from, to } => {
                assert_eq!(
                    (from.len(), to.len()),
                    (self.register.len(), self.register.len())
                );
                (*from <= self.register && self.register <= *to) != *negated
            }
            Expression::Lookup {
                negated,
                field,
                ranges,
            } => {
                assert_eq!(field.length as usize, self.register.len());
                let add = |number: u128, byte: &u8| number << 8 | u128::from(*byte);
                let number = self.register.iter().fold(0, add);
                ranges.iter().any(|range| range.contains(&number)) != *negated
            }
            Expression::LookupNamed { negated, set } => {
                self.assert_key(set);
                self.packet.is_remembered != *negated
            }
            Expression::Update { set, .. } => {
                self.assert_key(set);
                self.packet.is_remembered |= !self.packet.is_full;
                self.packet.is_remembered
            }
            Expression::Verdict(code) => return Some(verdict(*code)),
            Expression::Jump(chain) => {
                return Some(self.chain(chain)?.map_or(Flow::NextRule, Flow::End));
            }
            Expression::Goto(chain) => {
                return Some(self.chain(chain)?.map_or(Flow::Return, Flow::End));
            }
            step => self.load(step),
        };
        Some(if holds { Flow::On } else { Flow::NextRule })
    }

    /// Executes a step that changes a register or the packet; false if it ends the rule.
    fn load(&mut self, step: &Expression) -> bool {
        match step {
            Expression::Meta(key) => self.register = self.meta(*key),
            Expression::Payload(field) => self.register = self.payload(*field),
            Expression::Concatenation(fields) => self.register = self.concatenation(fields),
            Expression::Delete(set) => {
                self.assert_key(set);
                self.packet.is_remembered = false;
            }
            Expression::Socket(key) => match (self.packet.socket, *key) {
                (Some(owner), NFT_SOCKET_TRANSPARENT) => {
                    self.register = vec![owner.transparent.into()];
                }
                (Some(owner), NFT_SOCKET_WILDCARD) if owner.full => {
                    self.register = vec![owner.wildcard.into()];
                }
                _ => return false,
            },
            Expression::Mask(mask) => {
                assert_eq!(mask.len(), self.register.len());
                for (byte, mask) in self.register.iter_mut().zip(mask) {
                    *byte &= mask;
                }
            }
            Expression::AddressType(of) => {
                let is_local = self.packet.is_local[usize::from(*of == AddressOf::Destination)];
                let kind = if is_local {
                    libc::RTN_LOCAL
                } else {
                    libc::RTN_UNICAST
                };
                self.register = u32::from(kind).to_ne_bytes().to_vec();
            }
            Expression::ConnectionMark => match self.packet.connection_mark {
                Some(mark) => self.register = mark.to_ne_bytes().to_vec(),
                None => return false,
            },
            Expression::SetMark(mark) => {
                self.packet.mark = marked(self.packet.mark, *mark);
            }
            Expression::SetConnectionMark(mark) => {
                let old = self.packet.connection_mark;
                self.packet.connection_mark = old.map(|old| marked(old, *mark));
            }
            Expression::SetMeta(key, value) => {
                assert_eq!(*key, libc::NFT_META_PRIORITY);
                assert_eq!(*value, REDIRECTED_TAG.to_ne_bytes());
                self.is_tagged = true;
            }
            Expression::Tproxy {
                family,
                address,
                port,
            } => {
                assert_eq!(*family, self.packet.family);
                let found = Some((*address, *port)).filter(|_| self.packet.has_listener);
                self.listener = found.or(self.listener);
                return found.is_some();
            }
            step => panic!("{step:?} is no such step"),
        }
        true
    }

    /// A set remembers connections of the packet's family, by addresses and ports of the client's packets.
    fn assert_key(&self, set: &str) {
        let family = self.packet.family;
        assert_eq!(set, connections::syn_seen(family));
        let key = self.concatenation(&connections::client_key(family));
        assert_eq!(self.register, key);
    }

    fn concatenation(&self, fields: &[Field]) -> Vec<u8> {
        let padded = fields.iter().map(|field| {
            let mut bytes = self.payload(*field);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        });
        padded.collect::<Vec<_>>().concat()
    }

    fn meta(&self, key: i32) -> Vec<u8> {
        match key {
            libc::NFT_META_NFPROTO => vec![self.packet.family.number()],
            libc::NFT_META_L4PROTO => vec![self.packet.protocol as u8],
            libc::NFT_META_MARK => self.packet.mark.to_ne_bytes().to_vec(),
            libc::NFT_META_IIFNAME => {
                let mut name = self.packet.interface.clone().into_bytes();
                name.resize(16, 0);
                name
            }
            key => panic!("meta {key} is never asked for"),
        }
    }

    fn payload(&self, field: Field) -> Vec<u8> {
        let bytes: Vec<u8> = match field.base {
            libc::NFT_PAYLOAD_TRANSPORT_HEADER => {
                let mut header = self.packet.ports.map(u16::to_be_bytes).concat();
                header.resize(20, 0);
                header[13] = self.packet.flags;
                header
            }
            libc::NFT_PAYLOAD_NETWORK_HEADER => {
                let addresses = self.packet.addresses;
                let octets = addresses.map(|number| match address(self.packet.family, number) {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                });
                let in_front = match self.packet.family {
                    Family::V4 => 12,
                    Family::V6 => 8,
                };
                [vec![0; in_front], octets.concat()].concat()
            }
            base => panic!("header {base} is never asked for"),
        };
        let offset = field.offset as usize;
        bytes[offset..offset + field.length as usize].to_vec()
    }
}

/// `nft_bitwise` with the inverted mask and the value.
fn marked(old: u32, mark: Mark) -> u32 {
    old & !mark.mask ^ mark.value
}

fn verdict(code: i32) -> Flow {
    match code {
        libc::NF_ACCEPT => Flow::End(true),
        libc::NF_DROP => Flow::End(false),
        libc::NFT_RETURN => Flow::Return,
        code => panic!("verdict {code} is never given"),
    }
}
