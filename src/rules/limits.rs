//! Limits of iptables 1.8 that a script must keep, so that `iptables-restore` loads it too.

/// Longest line, in bytes (the buffer of `xtables_restore_parse` less the closing NUL).
pub const LONGEST_LINE: usize = 10_239;

/// Most words of a line (`MAX_ARGC`, iptables/xshared.h, less the program, `-t` and `mangle`).
pub const MOST_WORDS: usize = 251;

/// Longest word of a line, in bytes ("Parameter too long!", `xt_param_buf`).
pub const LONGEST_WORD: usize = 1023;

/// Ports in a list of `-m multiport`; a range takes two (`XT_MULTI_PORTS`,
/// linux/netfilter/xt_multiport.h).
pub const MULTIPORT_SLOTS: usize = 15;

/// Longest interface name, in bytes (`IFNAMSIZ`, linux/if.h, less the closing NUL).
pub const LONGEST_INTERFACE: usize = 15;

/// Longest comment, in bytes (`XT_MAX_COMMENT_LEN`, linux/netfilter/xt_comment.h, less the closing
/// NUL).
pub const LONGEST_COMMENT: usize = 255;

/// Longest chain name, in bytes (`XT_EXTENSION_MAXNAMELEN`, linux/netfilter/x_tables.h, less the
/// closing NUL).
pub const LONGEST_CHAIN_NAME: usize = 28;
