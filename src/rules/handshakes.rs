//! Rules for handshakes by SYN cookie, which every script gets beside its own.
//!
//! A kernel that answers a SYN by a cookie (`net.ipv4.tcp_syncookies`) keeps no socket for the handshake: the
//! listener learns of the connection from the client's next packet, which `-m socket` finds no owner for. So
//! SYNs that TPROXY takes are remembered for some seconds, and a packet of such a connection goes to TPROXY as
//! the SYN did, unless a rule has marked it because a socket owns it. iptables has no rule that does this.

use crate::rules::rule::{Match, Rule, Target, Test};
use crate::rules::script::Script;

impl Script {
    /// Adds, for each rule by which TPROXY takes SYNs, one for the other packets of their connections: at the end
    /// of its chain, where few packets come by.
    pub fn with_handshakes(mut self) -> Script {
        for chain in &mut self.chains {
            let added: Vec<Rule> = chain.rules.iter().filter_map(for_handshakes).collect();
            let end = chain.rules.iter().position(takes_all);
            let end = end.unwrap_or(chain.rules.len());
            chain.rules.splice(end..end, added);
        }
        self
    }
}

/// The rule for packets behind the SYN. What has the mark already needs no listener: a cheap test, which comes
/// first.
fn for_handshakes(rule: &Rule) -> Option<Rule> {
    let Some(Target::Tproxy { mark, .. }) = rule.target else {
        return None;
    };
    let mut added = rule.clone();
    added.matches.retain(|it| !it.selects_syns());
    added.matches.push(Match {
        negated: true,
        test: Test::Mark(mark),
    });
    added.matches.push(Test::Handshake.into());
    rule.takes_syns().then_some(added)
}

/// Whether no packet of TCP gets past a rule.
fn takes_all(rule: &Rule) -> bool {
    let ends = matches!(
        rule.target,
        Some(Target::Accept | Target::Drop | Target::Return)
    );
    ends && rule.matches.is_empty()
}
