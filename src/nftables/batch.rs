//! One nf_tables transaction: a batch of messages that the kernel applies as a whole, or not at all.
//!
//! A batch holds a description of each message, so that an error names what was refused. The frame of
//! a batch is that of linux/netfilter/nfnetlink.h.

use crate::error::Error;
use crate::netlink::message::{Message, Refusal, attribute};
use crate::netlink::socket::Socket;
use crate::nftables::encode::NFTA_EXPR_NAME;
use crate::nftables::expression::Expression;
use crate::nftables::messages::{self, TableFamily};
use crate::nftables::nft::Field;
use crate::nftables::ruleset::Ruleset;
use crate::rules::rule::Ranges;

/// Whether the kernel keeps the result of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitMode {
    /// It applies the transaction.
    Commit,
    /// It checks the transaction and aborts it.
    DryRun,
}

/// A transaction under construction.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    messages: Vec<Message>,
    /// For each message its table, and what it requests, for errors.
    requests: Vec<(TableFamily, String)>,
    /// Number of anonymous sets so far: the id of the last one. 0 is none: Linux 6.1 finds by it a named set that
    /// exists already (`nft_set_lookup_byid`, net/netfilter/nf_tables_api.c).
    sets: u32,
}

/// The reason why the kernel refused a transaction.
#[derive(Debug)]
pub struct Refused {
    /// The table of the refused message; of the first message, if the batch as a whole was refused.
    pub family: Option<TableFamily>,
    /// What was requested, and the kernel's answer.
    pub error: Error,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        refused.error
    }
}

impl Batch {
    fn add(&mut self, family: TableFamily, message: Message, request: String) {
        self.messages.push(message);
        self.requests.push((family, request));
    }

    /// Creates a table with these flags. An existing table must have the same flags.
    pub fn create(&mut self, family: TableFamily, flags: u32) {
        let table = messages::new_table(family, flags);
        self.add(family, table, format!("create table {family}"));
    }

    /// Deletes a table, if there is one; `flags` are those of an existing table. The batch creates the
    /// table first, because the deletion of a table that does not exist is an error.
    pub fn delete(&mut self, family: TableFamily, flags: u32) {
        self.create(family, flags);
        let table = messages::delete_table(family);
        self.add(family, table, format!("delete table {family}"));
    }

    /// Removes all rules of a table, and those of its chains that `ruleset` creates anew; sets and their elements
    /// stay. The batch creates each chain first, as [`Batch::delete`] creates a table.
    pub fn clear(&mut self, family: TableFamily, ruleset: &Ruleset) {
        let flush = messages::flush_table(family);
        self.add(family, flush, format!("flush table {family}"));
        for chain in &ruleset.chains {
            let request = format!("delete chain {} in table {family}", chain.name);
            let new = messages::new_chain(family, chain);
            self.add(family, new, request.clone());
            let delete = messages::delete_chain(family, &chain.name);
            self.add(family, delete, request);
        }
    }

    /// Writes a ruleset into a table.
    pub fn write(&mut self, family: TableFamily, ruleset: &Ruleset) {
        for chain in &ruleset.chains {
            let request = format!("create chain {} in table {family}", chain.name);
            self.add(family, messages::new_chain(family, chain), request);
        }
        for set in &ruleset.named_sets {
            let request = format!("create set {} in table {family}", set.name);
            self.add(family, messages::new_named_set(family, set), request);
        }
        for chain in &ruleset.flushed_chains {
            let request = format!("flush chain {chain} in table {family}");
            self.add(family, messages::flush_chain(family, chain), request);
        }
        for rule in &ruleset.rules {
            let first_set = self.sets + 1;
            for expression in &rule.expressions {
                if let Expression::Lookup { field, ranges, .. } = expression {
                    self.write_anonymous_set(family, *field, ranges);
                }
            }
            let request = format!("add a rule to chain {} in table {family}", rule.chain);
            let rule = messages::new_rule(family, rule, first_set);
            self.add(family, rule, request);
        }
        if let Some(map) = &ruleset.map {
            let request = format!("fill map {} in table {family}", map.map);
            for elements in messages::map_elements(family, map) {
                self.add(family, elements, request.clone());
            }
        }
    }

    fn write_anonymous_set(&mut self, family: TableFamily, field: Field, ranges: &Ranges) {
        self.sets += 1;
        let (id, length) = (self.sets, ranges.len());
        let request = format!("create a set of {length} ranges in table {family}");
        let new = messages::new_anonymous_set(family, id, field);
        self.add(family, new, request.clone());
        for elements in messages::interval_elements(family, id, field, ranges) {
            self.add(family, elements, request.clone());
        }
    }

    /// Sends the transaction.
    ///
    /// # Errors
    /// The first message that the kernel refuses; the kernel has changed nothing then.
    pub fn commit(mut self, socket: &mut Socket, mode: CommitMode) -> Result<(), Refused> {
        if let Some(last) = self.messages.last_mut() {
            last.request_ack();
        }
        let mut framed = vec![messages::batch_frame(libc::NFNL_MSG_BATCH_BEGIN)];
        framed.append(&mut self.messages);
        // Without the last message the kernel checks a batch and aborts it (`nfnetlink_rcv_batch`).
        if mode == CommitMode::Commit {
            framed.push(messages::batch_frame(libc::NFNL_MSG_BATCH_END));
        }
        socket
            .request(&framed)
            .map_err(|refusal| self.refused(refusal, &framed))
    }

    fn refused(&self, refusal: Refusal, framed: &[Message]) -> Refused {
        let request = self.requests.get(refusal.index.saturating_sub(1));
        let (family, text) = request.or(self.requests.first()).cloned().unzip();
        let error = Error::numbered(text.unwrap_or_default(), refusal.errno);
        let message = framed.get(refusal.index);
        let hint = missing_module(&refusal, message).or(refusal.message);
        let error = match hint {
            Some(hint) => error.hint(hint),
            None => error,
        };
        Refused { family, error }
    }
}

/// The part of the kernel that is missing, if that is why it refused a message.
fn missing_module(refusal: &Refusal, message: Option<&Message>) -> Option<String> {
    if refusal.errno == libc::EOPNOTSUPP && refusal.index == 0 {
        let hint = "the kernel lacks nf_tables: module nf_tables, CONFIG_NF_TABLES";
        return Some(hint.to_owned());
    }
    if refusal.errno != libc::ENOENT {
        return None;
    }
    let expression = message?.payload_at(refusal.offset?)?;
    let name = String::from_utf8_lossy(attribute(expression, NFTA_EXPR_NAME)?);
    let name = name.trim_end_matches('\0');
    // The module nft_fib has only what its modules for each family share.
    let module = if name == "fib" { "fib_inet" } else { name };
    let option = module.to_ascii_uppercase();
    Some(format!(
        "the kernel lacks the expression {name}: module nft_{module}, CONFIG_NFT_{option}"
    ))
}
