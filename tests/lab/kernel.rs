//! What this kernel can do: tried, in a namespace of its own.

use std::sync::LazyLock;

use tproxy_pod::netlink::{Message, Refusal, Socket};

use super::Namespace;

/// `NFT_META_BRI_BROUTE` (linux/netfilter/nf_tables.h)
const NFT_META_BRI_BROUTE: u32 = 35;

/// Whether a rule can lift a frame from a bridge to IP: `meta broute`, since Linux 6.4, where
/// `CONFIG_NFT_BRIDGE_META` is set.
pub fn broutes() -> bool {
    static BROUTES: LazyLock<bool> = LazyLock::new(|| match try_broute() {
        Ok(()) => true,
        Err(refusal) if refusal.errno == libc::EOPNOTSUPP => false,
        Err(refusal) => panic!("{refusal:?}"),
    });
    *BROUTES
}

/// Whether devices of a kind, such as `ipvlan`, can be made on another.
pub fn has_device(kind: &str) -> bool {
    let namespace = Namespace::new();
    namespace.batch("link add eth0 type veth peer name peer");
    let added = namespace.try_run(&format!("ip link add link eth0 name tried type {kind}"));
    let complaint = String::from_utf8_lossy(&added.stderr);
    let unknown = complaint.contains("Unknown device type");
    assert!(added.status.success() || unknown, "{complaint}");
    !unknown
}

/// Whether there is IPVS.
pub fn has_ipvs() -> bool {
    let listed = Namespace::new().try_run("ipvsadm -L -n");
    let complaint = String::from_utf8_lossy(&listed.stderr);
    let missing = complaint.contains("Are you sure that IP Virtual Server is built in the kernel");
    assert!(listed.status.success() || missing, "{complaint}");
    listed.status.success()
}

/// A table with a rule that sets it, in one transaction.
fn try_broute() -> Result<(), Refusal> {
    let text = |message: &mut Message, kinds: &[(u16, &str)]| {
        for (kind, text) in kinds {
            message.put_text(*kind, text);
        }
    };
    let mut table = message(libc::NFT_MSG_NEWTABLE);
    text(&mut table, &[(1, "tried")]);
    let mut chain = message(libc::NFT_MSG_NEWCHAIN);
    text(
        &mut chain,
        &[(1, "tried"), (3, "prerouting"), (7, "filter")],
    );
    chain.nest(4, |hook| {
        hook.put_be32(1, libc::NF_INET_PRE_ROUTING as u32)
            .put_be32(2, -300i32 as u32);
    });
    let mut rule = message(libc::NFT_MSG_NEWRULE);
    text(&mut rule, &[(1, "tried"), (2, "prerouting")]);
    rule.nest(4, |list| {
        expression(list, "immediate", |data| {
            data.put_be32(1, libc::NFT_REG_1 as u32).nest(2, |value| {
                value.put(1, &[1]);
            });
        });
        expression(list, "meta", |data| {
            data.put_be32(2, NFT_META_BRI_BROUTE)
                .put_be32(3, libc::NFT_REG_1 as u32);
        });
    });
    rule.acknowledge();
    let frame = |kind: libc::c_int| {
        let header = [0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8];
        Message::new(kind as u16, 0, &header)
    };
    let (begin, end) = (libc::NFNL_MSG_BATCH_BEGIN, libc::NFNL_MSG_BATCH_END);
    Namespace::new().enter(|| {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
        socket.request(&[frame(begin), table, chain, rule, frame(end)])
    })
}

fn message(kind: libc::c_int) -> Message {
    let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
    let header = [libc::NFPROTO_BRIDGE as u8, libc::NFNETLINK_V0 as u8, 0, 0];
    Message::new(kind, libc::NLM_F_CREATE, &header)
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(1, |element| {
        element.put_text(1, name).nest(2, fill);
    });
}
