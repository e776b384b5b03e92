//! Expressions that the `nftnl` crate lacks, built through libnftnl itself; and, in [`set`], sets
//! and named counters.
//!
//! No other module of this crate has unsafe code. Two shapes cover everything: an expression is a
//! name and numbered attributes, a set is a declaration and elements. The attributes of an
//! expression, and the width of each, stand in its constructor here and nowhere else, because
//! libnftnl copies as many bytes as it expects, not as many as it was given.
#![allow(unsafe_code)]

mod set;

pub(crate) use set::{
    Declaration, MAX_ELEMENTS, RawCounter, RawElement, RawSet, SET_CONCAT, SetMessage,
};

use std::{
    ffi::{CStr, CString, c_void},
    ptr::NonNull,
};

use nftnl::{
    expr::Expression,
    nftnl_sys::{self as sys, libc},
};

use super::super::ruleset::language::{Family, Rate};

/// One expression, ready to be added to a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawExpr {
    name: &'static CStr,
    attributes: Vec<(u32, Attribute)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Attribute {
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    Text(CString),
    Bytes(Vec<u8>),
    Expression(Box<RawExpr>),
}

impl RawExpr {
    pub(crate) fn meta_load(key: u32, register: u32) -> Self {
        Self::new(c"meta")
            .u32(sys::NFTNL_EXPR_META_KEY, key)
            .u32(sys::NFTNL_EXPR_META_DREG, register)
    }

    pub(crate) fn meta_set(key: u32, register: u32) -> Self {
        Self::new(c"meta")
            .u32(sys::NFTNL_EXPR_META_KEY, key)
            .u32(sys::NFTNL_EXPR_META_SREG, register)
    }

    pub(crate) fn payload(base: u32, offset: u32, length: u32, register: u32) -> Self {
        Self::new(c"payload")
            .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, register)
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base)
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, length)
    }

    pub(crate) fn compare(operator: u32, data: &[u8]) -> Self {
        Self::new(c"cmp")
            .u32(sys::NFTNL_EXPR_CMP_SREG, REGISTER)
            .u32(sys::NFTNL_EXPR_CMP_OP, operator)
            .with(sys::NFTNL_EXPR_CMP_DATA, Attribute::Bytes(data.to_vec()))
    }

    pub(crate) fn lookup(set: &CStr, id: u32, invert: bool) -> Self {
        let flags = if invert { libc::NFT_LOOKUP_F_INV as u32 } else { 0 };
        Self::new(c"lookup")
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, REGISTER)
            .with(sys::NFTNL_EXPR_LOOKUP_SET, Attribute::Text(set.to_owned()))
            .u32(sys::NFTNL_EXPR_LOOKUP_SET_ID, id)
            .u32(sys::NFTNL_EXPR_LOOKUP_FLAGS, flags)
    }

    /// Goes on only if the map has the key in the register, and loads the map's value into another.
    pub(crate) fn look_up_into(map: &CStr, register: u32) -> Self {
        Self::lookup(map, 0, false).u32(sys::NFTNL_EXPR_LOOKUP_DREG, register)
    }

    pub(crate) fn fib(flags: u32, result: u32) -> Self {
        Self::new(c"fib")
            .u32(sys::NFTNL_EXPR_FIB_DREG, REGISTER)
            .u32(sys::NFTNL_EXPR_FIB_RESULT, result)
            .u32(sys::NFTNL_EXPR_FIB_FLAGS, flags)
    }

    pub(crate) fn socket(key: u32) -> Self {
        Self::new(c"socket")
            .u32(sys::NFTNL_EXPR_SOCKET_KEY, key)
            .u32(sys::NFTNL_EXPR_SOCKET_DREG, REGISTER)
    }

    /// Takes the port, in network order, from the register; or an address from there, and the port
    /// from the next. The family is always given, because without it nft cannot load its own
    /// listing.
    pub(crate) fn tproxy(family: Family, has_address: bool) -> Self {
        let this =
            Self::new(c"tproxy").u32(sys::NFTNL_EXPR_TPROXY_FAMILY, u32::from(family.number()));
        if !has_address {
            return this.u32(sys::NFTNL_EXPR_TPROXY_REG_PORT, REGISTER);
        }
        this.u32(sys::NFTNL_EXPR_TPROXY_REG_ADDR, REGISTER)
            .u32(sys::NFTNL_EXPR_TPROXY_REG_PORT, REGISTER + 1)
    }

    /// Takes the size, in network order, from the register, and writes it into the TCP option that
    /// announces the largest segment (RFC 9293, section 3.7.1), if that announces more.
    pub(crate) fn max_segment() -> Self {
        Self::new(c"exthdr")
            .u32(sys::NFTNL_EXPR_EXTHDR_SREG, REGISTER)
            .with(sys::NFTNL_EXPR_EXTHDR_TYPE, Attribute::U8(MAX_SEGMENT))
            .u32(sys::NFTNL_EXPR_EXTHDR_OFFSET, 2)
            .u32(sys::NFTNL_EXPR_EXTHDR_LEN, 2)
            .u32(sys::NFTNL_EXPR_EXTHDR_OP, OF_TCP)
    }

    pub(crate) fn reject(kind: u32, code: u8) -> Self {
        Self::new(c"reject")
            .u32(sys::NFTNL_EXPR_REJECT_TYPE, kind)
            .with(sys::NFTNL_EXPR_REJECT_CODE, Attribute::U8(code))
    }

    pub(crate) fn counter() -> Self {
        Self::new(c"counter")
    }

    /// Goes on only above this many packets a second, and as many at once.
    pub(crate) fn limit_over(rate: Rate) -> Self {
        Self::new(c"limit")
            .with(sys::NFTNL_EXPR_LIMIT_RATE, Attribute::U64(u64::from(rate.a_second)))
            .with(sys::NFTNL_EXPR_LIMIT_UNIT, Attribute::U64(A_SECOND))
            .u32(sys::NFTNL_EXPR_LIMIT_BURST, rate.at_once)
            .u32(sys::NFTNL_EXPR_LIMIT_TYPE, LIMIT_PACKETS)
            .u32(sys::NFTNL_EXPR_LIMIT_FLAGS, LIMIT_INVERT)
    }

    /// Applies the limit to the packets that share the key in the register. A new key is added to
    /// the set, where it stays for this many milliseconds without a packet. Where there is no room
    /// for it, the rule does not go on with its packets.
    pub(crate) fn meter(set: &CStr, milliseconds: u64, limit: Self) -> Self {
        Self::new(c"dynset")
            .u32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, REGISTER)
            .u32(sys::NFTNL_EXPR_DYNSET_OP, libc::NFT_DYNSET_OP_UPDATE as u32)
            .with(sys::NFTNL_EXPR_DYNSET_TIMEOUT, Attribute::U64(milliseconds))
            .with(sys::NFTNL_EXPR_DYNSET_SET_NAME, Attribute::Text(set.to_owned()))
            .u32(sys::NFTNL_EXPR_DYNSET_SET_ID, 0)
            .with(sys::NFTNL_EXPR_DYNSET_EXPR, Attribute::Expression(Box::new(limit)))
    }

    /// Counts into the named counter.
    pub(crate) fn count_as(counter: &CStr) -> Self {
        Self::new(c"objref")
            .u32(sys::NFTNL_EXPR_OBJREF_IMM_TYPE, OBJECT_COUNTER)
            .with(sys::NFTNL_EXPR_OBJREF_IMM_NAME, Attribute::Text(counter.to_owned()))
    }

    /// Keeps only the bits of the mask, in this register.
    pub(crate) fn mask(register: u32, mask: &[u8]) -> Self {
        let nothing = vec![0; mask.len()];
        Self::new(c"bitwise")
            .u32(sys::NFTNL_EXPR_BITWISE_SREG, register)
            .u32(sys::NFTNL_EXPR_BITWISE_DREG, register)
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
            .with(sys::NFTNL_EXPR_BITWISE_MASK, Attribute::Bytes(mask.to_vec()))
            .with(sys::NFTNL_EXPR_BITWISE_XOR, Attribute::Bytes(nothing))
    }

    /// Copies the first `snaplen` bytes of the packet to an NFLOG group.
    pub(crate) fn log(prefix: &CStr, group: u16, snaplen: u32) -> Self {
        Self::new(c"log")
            .with(sys::NFTNL_EXPR_LOG_PREFIX, Attribute::Text(prefix.to_owned()))
            .with(sys::NFTNL_EXPR_LOG_GROUP, Attribute::U16(group))
            .u32(sys::NFTNL_EXPR_LOG_SNAPLEN, snaplen)
    }

    pub(crate) fn immediate(data: &[u8]) -> Self {
        Self::immediate_at(REGISTER, data)
    }

    pub(crate) fn immediate_at(register: u32, data: &[u8]) -> Self {
        Self::new(c"immediate")
            .u32(sys::NFTNL_EXPR_IMM_DREG, register)
            .with(sys::NFTNL_EXPR_IMM_DATA, Attribute::Bytes(data.to_vec()))
    }

    pub(crate) fn verdict(verdict: i32) -> Self {
        Self::new(c"immediate")
            .u32(sys::NFTNL_EXPR_IMM_DREG, libc::NFT_REG_VERDICT as u32)
            .u32(sys::NFTNL_EXPR_IMM_VERDICT, verdict as u32)
    }

    pub(crate) fn goto(chain: &CStr) -> Self {
        Self::verdict(libc::NFT_GOTO)
            .with(sys::NFTNL_EXPR_IMM_CHAIN, Attribute::Text(chain.to_owned()))
    }

    fn new(name: &'static CStr) -> Self {
        Self { name, attributes: Vec::new() }
    }

    fn u32(self, number: u32, value: u32) -> Self {
        self.with(number, Attribute::U32(value))
    }

    fn with(mut self, number: u32, attribute: Attribute) -> Self {
        self.attributes.push((number, attribute));
        self
    }
}

impl RawExpr {
    fn build(&self) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name ends in NUL. libnftnl returns a new expression or null.
        let expr = or_abort(unsafe { sys::nftnl_expr_alloc(self.name.as_ptr()) });
        for (number, attribute) in &self.attributes {
            let (raw, number) = (expr.as_ptr(), *number as u16);
            // SAFETY: `raw` is the live expression of this call, and nobody else holds it. The
            // constructors above pair every attribute with the width that libnftnl reads: a
            // number of one, two, four or eight bytes, a string that ends in NUL, or bytes with
            // their length, all of which are copied.
            unsafe {
                match attribute {
                    Attribute::U8(value) => sys::nftnl_expr_set_u8(raw, number, *value),
                    Attribute::U16(value) => sys::nftnl_expr_set_u16(raw, number, *value),
                    Attribute::U32(value) => sys::nftnl_expr_set_u32(raw, number, *value),
                    Attribute::U64(value) => sys::nftnl_expr_set_u64(raw, number, *value),
                    Attribute::Text(text) => {
                        or_die(sys::nftnl_expr_set_str(raw, number, text.as_ptr()));
                    }
                    Attribute::Bytes(bytes) => {
                        let data = bytes.as_ptr().cast::<c_void>();
                        or_die(sys::nftnl_expr_set(raw, number, data, bytes.len() as u32));
                    }
                    // The outer expression takes the inner one over and frees it.
                    Attribute::Expression(inner) => {
                        let inner = inner.build().as_ptr().cast::<c_void>();
                        or_die(sys::nftnl_expr_set(raw, number, inner, 0));
                    }
                }
            }
        }
        expr
    }
}

impl Expression for RawExpr {
    fn to_expr(&self, _rule: &nftnl::Rule<'_>) -> NonNull<sys::nftnl_expr> {
        self.build()
    }
}

/// The register into which everything is loaded, and in which it is compared.
pub(crate) const REGISTER: u32 = libc::NFT_REG_1 as u32;

/// `NFT_OBJECT_COUNTER`.
pub(crate) const OBJECT_COUNTER: u32 = 1;

/// The kind of the option (RFC 9293, section 3.2).
const MAX_SEGMENT: u8 = 2;
/// `NFT_EXTHDR_OP_TCPOPT`.
const OF_TCP: u32 = 1;
// linux/netfilter/nf_tables.h, NFT_LIMIT_*.
const LIMIT_PACKETS: u32 = 0;
const LIMIT_INVERT: u32 = 1;
/// The unit of a limit, in seconds.
const A_SECOND: u64 = 1;

/// Aborts where libnftnl returns null, as the allocator would: it does so only when memory is out.
fn or_abort<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}

/// Aborts where a setter fails, which happens only when memory is out, or for an attribute that
/// does not exist.
fn or_die(result: i32) {
    if result < 0 {
        std::process::abort();
    }
}
