//! The matches of a rule as expressions: what `-p`, `--dport` or `-m socket` test.
//!
//! Cheap tests come first, whatever their order in the script: most packets fail after a few
//! comparisons.

use crate::nftables::connections;
use crate::nftables::expression::{Expression, NFT_SOCKET_TRANSPARENT};
use crate::nftables::nft::{self, Field, be_bytes};
use crate::rules::rule::{AddressOf, Match, PortOf, Ranges, Test};
use crate::selectors::Family;

/// The expressions of these matches.
pub fn expressions(matches: &[Match], family: Family) -> Vec<Expression> {
    let of_cost = |cost_of| {
        let tests = matches.iter().filter(move |it| cost(&it.test) == cost_of);
        tests.flat_map(|it| expressions_of(it, family))
    };
    (0..=u8::MAX).flat_map(of_cost).collect()
}

/// The cost of a test, relative to others: lookups in sets come late, then those of the node's addresses,
/// and lookups of sockets last.
fn cost(test: &Test) -> u8 {
    match test {
        Test::Protocol(_) => 0,
        Test::Mark(_) => 1,
        Test::TcpFlags { .. } => 2,
        Test::Ports(..) => 3,
        Test::Interface { .. } => 4,
        Test::Address(..) => 5,
        Test::ConnectionMark(_) => 6,
        Test::Handshake => 7,
        Test::Local(_) => 8,
        Test::Socket { .. } => 9,
    }
}

fn expressions_of(it: &Match, family: Family) -> Vec<Expression> {
    let negated = it.negated;
    match &it.test {
        Test::Protocol(protocol) => vec![
            Expression::Meta(libc::NFT_META_L4PROTO),
            compare(negated, vec![*protocol as u8]),
        ],
        Test::Mark(mark) => vec![
            Expression::Meta(libc::NFT_META_MARK),
            Expression::Mask(mark.mask.to_ne_bytes().into()),
            compare(negated, mark.value.to_ne_bytes().into()),
        ],
        Test::ConnectionMark(mark) => vec![
            Expression::ConnectionMark,
            Expression::Mask(mark.mask.to_ne_bytes().into()),
            compare(negated, mark.value.to_ne_bytes().into()),
        ],
        Test::Handshake => vec![
            connections::load_client_key(family),
            connections::is_in(&connections::syn_seen(family)),
        ],
        Test::Local(of) => vec![
            Expression::AddressType(*of),
            compare(negated, u32::from(libc::RTN_LOCAL).to_ne_bytes().into()),
        ],
        Test::TcpFlags { mask, set } => vec![
            Expression::Payload(nft::TCP_FLAGS),
            Expression::Mask(vec![*mask]),
            compare(negated, vec![*set]),
        ],
        Test::Ports(of, ranges) => in_ranges(port_field(*of), ranges, negated).into(),
        Test::Interface { name, prefix } => interface(name, *prefix, negated),
        Test::Address(of, ranges) => in_ranges(address_field(*of, family), ranges, negated).into(),
        Test::Socket { transparent, .. } => socket(*transparent),
    }
}

/// The expressions that test whether a field is in one of the ranges.
pub fn in_ranges(field: Field, ranges: &Ranges, negated: bool) -> [Expression; 2] {
    let bytes = |number: &u128| be_bytes(*number, field.length);
    let test = match ranges.as_slice() {
        [range] if range.start() == range.end() => compare(negated, bytes(range.start())),
        [range] => Expression::Range {
            negated,
            from: bytes(range.start()),
            to: bytes(range.end()),
        },
        _ => Expression::Lookup {
            negated,
            field,
            ranges: ranges.clone(),
        },
    };
    [Expression::Payload(field), test]
}

fn compare(negated: bool, data: Vec<u8>) -> Expression {
    Expression::Compare { negated, data }
}

/// The kernel compares at least one byte, so that the prefix "" needs no comparison, or one that never holds.
fn interface(name: &str, is_prefix: bool, negated: bool) -> Vec<Expression> {
    if is_prefix && name.is_empty() {
        let never = [
            Expression::Meta(libc::NFT_META_NFPROTO),
            compare(false, vec![0]),
        ];
        return never.into_iter().filter(|_| negated).collect();
    }
    let mut data = name.as_bytes().to_vec();
    if !is_prefix {
        data.resize(libc::IFNAMSIZ, 0);
    }
    vec![
        Expression::Meta(libc::NFT_META_IIFNAME),
        compare(negated, data),
    ]
}

/// Without a socket the first expression ends the rule.
fn socket(transparent: bool) -> Vec<Expression> {
    let mut expressions = vec![Expression::Socket(NFT_SOCKET_TRANSPARENT)];
    if transparent {
        expressions.push(Expression::equals(vec![1]));
    }
    expressions
}

/// `compile` replaces [`PortOf::Either`] by the other two.
fn port_field(of: PortOf) -> Field {
    match of {
        PortOf::Source => nft::SOURCE_PORT,
        PortOf::Destination | PortOf::Either => nft::DESTINATION_PORT,
    }
}

fn address_field(of: AddressOf, family: Family) -> Field {
    match of {
        AddressOf::Source => nft::source_address(family),
        AddressOf::Destination => nft::destination_address(family),
    }
}
