//! Expressions and sets that the `nftnl` crate does not know, built through libnftnl itself.
//!
//! The one place of unsafe code in this crate. Two shapes cover everything: an expression is a name
//! and numbered attributes, a set is a declaration and elements. Which attributes an expression
//! takes, and how wide each is, stands in its constructor here and nowhere else, because libnftnl
//! copies as many bytes as it expects, not as many as it was given.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_char, c_void},
    ptr::NonNull,
};

use nftnl::{
    MsgType, NlMsg, ProtoFamily,
    expr::Expression,
    nftnl_sys::{self as sys, libc},
};

use super::plan::{Family, TableFamily};

/// One expression, ready to be added to a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawExpr {
    name: &'static CStr,
    attributes: Vec<(u32, Attribute)>,
}

/// A set with some of its elements, owned by libnftnl's allocator.
pub(super) struct RawSet {
    set: NonNull<sys::nftnl_set>,
    family: TableFamily,
}

/// A named counter, owned by libnftnl's allocator.
pub(super) struct RawCounter {
    object: NonNull<sys::nftnl_obj>,
    family: TableFamily,
}

/// What a set is declared with.
#[derive(Debug, Clone)]
pub(super) struct Declaration {
    pub(super) table: &'static CStr,
    pub(super) family: TableFamily,
    pub(super) name: CString,
    /// Most elements that it takes; 0 for no bound.
    pub(super) size: u32,
    /// Ties lookups of the same transaction to an anonymous set; unique within it.
    pub(super) id: u32,
    /// `NFT_SET_*`.
    pub(super) flags: u32,
    /// The data type by nft's numbering, so that `nft list` can print the elements.
    pub(super) key_type: u32,
    /// Bytes of each field of the key, each padded to four where there are several.
    pub(super) fields: Vec<u8>,
    /// Notes of nft for itself; the kernel only keeps them.
    pub(super) userdata: Vec<u8>,
}

/// One element: a key, the first or last key of an interval, or both ends at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RawElement {
    pub(super) key: Vec<u8>,
    pub(super) key_end: Option<Vec<u8>>,
    pub(super) ends_interval: bool,
}

/// What is told to the kernel about a set. Added, it says what it names; deleted, `Elements` of
/// a set without any empties the kernel's.
pub(super) enum SetMessage<'a> {
    Declare(&'a RawSet),
    Elements(&'a RawSet),
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
    /// The name the kernel lists it by.
    pub(super) fn name(&self) -> &'static CStr {
        self.name
    }

    pub(super) fn meta_load(key: u32, register: u32) -> Self {
        Self::new(c"meta")
            .u32(sys::NFTNL_EXPR_META_KEY, key)
            .u32(sys::NFTNL_EXPR_META_DREG, register)
    }

    pub(super) fn meta_set(key: u32, register: u32) -> Self {
        Self::new(c"meta")
            .u32(sys::NFTNL_EXPR_META_KEY, key)
            .u32(sys::NFTNL_EXPR_META_SREG, register)
    }

    pub(super) fn payload(base: u32, offset: u32, length: u32, register: u32) -> Self {
        Self::new(c"payload")
            .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, register)
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base)
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, length)
    }

    pub(super) fn compare(operator: u32, data: &[u8]) -> Self {
        Self::new(c"cmp")
            .u32(sys::NFTNL_EXPR_CMP_SREG, REGISTER)
            .u32(sys::NFTNL_EXPR_CMP_OP, operator)
            .with(sys::NFTNL_EXPR_CMP_DATA, Attribute::Bytes(data.to_vec()))
    }

    pub(super) fn lookup(set: &CStr, id: u32, invert: bool) -> Self {
        let flags = if invert { libc::NFT_LOOKUP_F_INV as u32 } else { 0 };
        Self::new(c"lookup")
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, REGISTER)
            .with(sys::NFTNL_EXPR_LOOKUP_SET, Attribute::Text(set.to_owned()))
            .u32(sys::NFTNL_EXPR_LOOKUP_SET_ID, id)
            .u32(sys::NFTNL_EXPR_LOOKUP_FLAGS, flags)
    }

    pub(super) fn fib(flags: u32, result: u32) -> Self {
        Self::new(c"fib")
            .u32(sys::NFTNL_EXPR_FIB_DREG, REGISTER)
            .u32(sys::NFTNL_EXPR_FIB_RESULT, result)
            .u32(sys::NFTNL_EXPR_FIB_FLAGS, flags)
    }

    pub(super) fn socket(key: u32) -> Self {
        Self::new(c"socket")
            .u32(sys::NFTNL_EXPR_SOCKET_KEY, key)
            .u32(sys::NFTNL_EXPR_SOCKET_DREG, REGISTER)
    }

    /// Takes the port, in network order, from the register. The family is always given: without
    /// it nft cannot load what it lists.
    pub(super) fn tproxy(family: Family) -> Self {
        Self::new(c"tproxy")
            .u32(sys::NFTNL_EXPR_TPROXY_FAMILY, u32::from(family.number()))
            .u32(sys::NFTNL_EXPR_TPROXY_REG_PORT, REGISTER)
    }

    pub(super) fn reject(kind: u32, code: u8) -> Self {
        Self::new(c"reject")
            .u32(sys::NFTNL_EXPR_REJECT_TYPE, kind)
            .with(sys::NFTNL_EXPR_REJECT_CODE, Attribute::U8(code))
    }

    pub(super) fn counter() -> Self {
        Self::new(c"counter")
    }

    /// Goes on only above this many packets a second, and as many at once.
    pub(super) fn limit_over(rate: u32) -> Self {
        Self::limit(rate, LIMIT_INVERT)
    }

    /// Goes on only up to this many packets a second, and as many at once.
    pub(super) fn limit_within(rate: u32) -> Self {
        Self::limit(rate, 0)
    }

    fn limit(rate: u32, flags: u32) -> Self {
        Self::new(c"limit")
            .with(sys::NFTNL_EXPR_LIMIT_RATE, Attribute::U64(u64::from(rate)))
            .with(sys::NFTNL_EXPR_LIMIT_UNIT, Attribute::U64(A_SECOND))
            .u32(sys::NFTNL_EXPR_LIMIT_BURST, rate)
            .u32(sys::NFTNL_EXPR_LIMIT_TYPE, LIMIT_PACKETS)
            .u32(sys::NFTNL_EXPR_LIMIT_FLAGS, flags)
    }

    /// Applies the limit to the packets that share the key in the register. A key that is new is
    /// added to the set, where it stays for this many milliseconds without a packet. Where there is
    /// no room for it, the rule goes on with no packet of it.
    pub(super) fn meter(set: &CStr, milliseconds: u64, limit: Self) -> Self {
        Self::new(c"dynset")
            .u32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, REGISTER)
            .u32(sys::NFTNL_EXPR_DYNSET_OP, libc::NFT_DYNSET_OP_UPDATE as u32)
            .with(sys::NFTNL_EXPR_DYNSET_TIMEOUT, Attribute::U64(milliseconds))
            .with(sys::NFTNL_EXPR_DYNSET_SET_NAME, Attribute::Text(set.to_owned()))
            .u32(sys::NFTNL_EXPR_DYNSET_SET_ID, 0)
            .with(sys::NFTNL_EXPR_DYNSET_EXPR, Attribute::Expression(Box::new(limit)))
    }

    /// Counts into the named counter.
    pub(super) fn count_as(counter: &CStr) -> Self {
        Self::new(c"objref")
            .u32(sys::NFTNL_EXPR_OBJREF_IMM_TYPE, OBJECT_COUNTER)
            .with(sys::NFTNL_EXPR_OBJREF_IMM_NAME, Attribute::Text(counter.to_owned()))
    }

    /// Keeps only the bits of the mask, in this register.
    pub(super) fn mask(register: u32, mask: &[u8]) -> Self {
        let nothing = vec![0; mask.len()];
        Self::new(c"bitwise")
            .u32(sys::NFTNL_EXPR_BITWISE_SREG, register)
            .u32(sys::NFTNL_EXPR_BITWISE_DREG, register)
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
            .with(sys::NFTNL_EXPR_BITWISE_MASK, Attribute::Bytes(mask.to_vec()))
            .with(sys::NFTNL_EXPR_BITWISE_XOR, Attribute::Bytes(nothing))
    }

    /// Copies the first `snaplen` bytes of the packet to an NFLOG group.
    pub(super) fn log(prefix: &CStr, group: u16, snaplen: u32) -> Self {
        Self::new(c"log")
            .with(sys::NFTNL_EXPR_LOG_PREFIX, Attribute::Text(prefix.to_owned()))
            .with(sys::NFTNL_EXPR_LOG_GROUP, Attribute::U16(group))
            .u32(sys::NFTNL_EXPR_LOG_SNAPLEN, snaplen)
    }

    pub(super) fn immediate(data: &[u8]) -> Self {
        Self::new(c"immediate")
            .u32(sys::NFTNL_EXPR_IMM_DREG, REGISTER)
            .with(sys::NFTNL_EXPR_IMM_DATA, Attribute::Bytes(data.to_vec()))
    }

    pub(super) fn verdict(verdict: i32) -> Self {
        Self::new(c"immediate")
            .u32(sys::NFTNL_EXPR_IMM_DREG, libc::NFT_REG_VERDICT as u32)
            .u32(sys::NFTNL_EXPR_IMM_VERDICT, verdict as u32)
    }

    pub(super) fn goto(chain: &CStr) -> Self {
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

impl RawSet {
    /// A set as declared, with these elements. At most [`MAX_ELEMENTS`] of them fit a message.
    pub(super) fn new(declaration: &Declaration, elements: &[RawElement]) -> Self {
        // SAFETY: no argument. libnftnl returns a new set or null.
        let set = or_abort(unsafe { sys::nftnl_set_alloc() });
        let this = Self { set, family: declaration.family };
        this.declare(declaration);
        for element in elements.iter().take(MAX_ELEMENTS) {
            this.add(element);
        }
        this
    }

    fn declare(&self, declaration: &Declaration) {
        let set = self.set.as_ptr();
        let key_bytes = declaration.fields.iter().map(|field| u32::from(*field)).sum();
        let numbers = [
            (sys::NFTNL_SET_FAMILY, declaration.family.proto() as u32),
            (sys::NFTNL_SET_ID, declaration.id),
            (sys::NFTNL_SET_FLAGS, declaration.flags),
            (sys::NFTNL_SET_KEY_TYPE, declaration.key_type),
            (sys::NFTNL_SET_KEY_LEN, key_bytes),
        ];
        let size = Some((sys::NFTNL_SET_DESC_SIZE, declaration.size));
        let size = size.filter(|(_, size)| *size > 0);
        for (number, value) in numbers.into_iter().chain(size) {
            // SAFETY: `set` is live and ours; these attributes are all u32 (libnftnl set.c).
            unsafe { sys::nftnl_set_set_u32(set, number as u16, value) };
        }
        let texts = [
            (sys::NFTNL_SET_TABLE, declaration.table),
            (sys::NFTNL_SET_NAME, declaration.name.as_c_str()),
        ];
        for (number, text) in texts {
            // SAFETY: `set` is live and ours; the text ends in NUL and is copied.
            or_die(unsafe { sys::nftnl_set_set_str(set, number as u16, text.as_ptr()) });
        }
        let joined = declaration.flags & SET_CONCAT != 0;
        let lengths = if joined { &declaration.fields } else { &Vec::new() };
        let blobs = [
            (sys::NFTNL_SET_DESC_CONCAT, lengths),
            (sys::NFTNL_SET_USERDATA, &declaration.userdata),
        ];
        for (number, blob) in blobs.into_iter().filter(|(_, blob)| !blob.is_empty()) {
            let (data, length) = (blob.as_ptr().cast::<c_void>(), blob.len() as u32);
            // SAFETY: `set` is live and ours; `length` bytes stand behind `data`, they are copied,
            // and libnftnl refuses more field lengths than it has room for.
            or_die(unsafe { sys::nftnl_set_set_data(set, number as u16, data, length) });
        }
    }

    fn add(&self, element: &RawElement) {
        // SAFETY: no argument. libnftnl returns a new element or null.
        let raw = or_abort(unsafe { sys::nftnl_set_elem_alloc() });
        let keys = [
            (sys::NFTNL_SET_ELEM_KEY, Some(&element.key)),
            (sys::NFTNL_SET_ELEM_KEY_END, element.key_end.as_ref()),
        ];
        for (number, key) in keys {
            let Some(key) = key.filter(|key| key.len() <= MAX_KEY_BYTES) else { continue };
            let data = key.as_ptr().cast::<c_void>();
            // SAFETY: `raw` is live and ours; `data` holds as many bytes as it says, which fit
            // the register (64 bytes) that libnftnl copies them into.
            or_die(unsafe {
                sys::nftnl_set_elem_set(raw.as_ptr(), number as u16, data, key.len() as u32)
            });
        }
        if element.ends_interval {
            let (number, end) = (sys::NFTNL_SET_ELEM_FLAGS, libc::NFT_SET_ELEM_INTERVAL_END);
            // SAFETY: `raw` is live and ours; the attribute is a u32.
            unsafe { sys::nftnl_set_elem_set_u32(raw.as_ptr(), number as u16, end as u32) };
        }
        // SAFETY: both are live; the set takes the element over and frees it.
        unsafe { sys::nftnl_set_elem_add(self.set.as_ptr(), raw.as_ptr()) };
    }
}

impl Drop for RawSet {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, owned by this value alone, not used after this.
        unsafe { sys::nftnl_set_free(self.set.as_ptr()) };
    }
}

impl RawCounter {
    /// A counter as it is declared; what it counts is the kernel's.
    pub(super) fn new(table: &CStr, family: TableFamily, name: &CStr) -> Self {
        // SAFETY: no argument. libnftnl returns a new object or null.
        let object = or_abort(unsafe { sys::nftnl_obj_alloc() });
        let (raw, proto) = (object.as_ptr(), family.proto() as u32);
        // SAFETY: `raw` is live and ours; family and type are u32, table and name are text that
        // ends in NUL and is copied (libnftnl object.c).
        unsafe {
            sys::nftnl_obj_set_u32(raw, sys::NFTNL_OBJ_FAMILY as u16, proto);
            sys::nftnl_obj_set_u32(raw, sys::NFTNL_OBJ_TYPE as u16, OBJECT_COUNTER);
            sys::nftnl_obj_set_str(raw, sys::NFTNL_OBJ_TABLE as u16, table.as_ptr());
            sys::nftnl_obj_set_str(raw, sys::NFTNL_OBJ_NAME as u16, name.as_ptr());
        }
        Self { object, family }
    }
}

impl Drop for RawCounter {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, owned by this value alone, not used after this.
        unsafe { sys::nftnl_obj_free(self.object.as_ptr()) };
    }
}

// SAFETY: a name and a number, far below `nft_nlmsg_maxsize`.
unsafe impl NlMsg for RawCounter {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, msg_type: MsgType) {
        let (kind, create) = match msg_type {
            MsgType::Add => (libc::NFT_MSG_NEWOBJ, libc::NLM_F_CREATE),
            MsgType::Del => (libc::NFT_MSG_DELOBJ, 0),
        };
        let flags = (libc::NLM_F_ACK | create) as u16;
        let family = self.family.proto() as u16;
        // SAFETY: the caller of `write` vouches for the room behind `buf`; the object is live for
        // as long as `self`, and building a payload does not change it.
        unsafe {
            let buf = buf.cast::<c_char>();
            let header = sys::nftnl_nlmsg_build_hdr(buf, kind as u16, family, flags, seq);
            sys::nftnl_obj_nlmsg_build_payload(header, self.object.as_ptr());
        }
    }
}

impl TableFamily {
    /// The same for libnftnl.
    pub(super) fn proto(self) -> ProtoFamily {
        match self {
            Self::Inet => ProtoFamily::Inet,
            Self::Netdev => ProtoFamily::NetDev,
        }
    }
}

impl SetMessage<'_> {
    fn family(&self) -> TableFamily {
        match self {
            Self::Declare(set) | Self::Elements(set) => set.family,
        }
    }
}

// SAFETY: a declaration is a few hundred bytes, and `RawSet::new` takes at most `MAX_ELEMENTS`
// elements of at most two keys of `MAX_KEY_BYTES`, so a message stays below `nft_nlmsg_maxsize`.
unsafe impl NlMsg for SetMessage<'_> {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, msg_type: MsgType) {
        let kind = match (self, &msg_type) {
            (Self::Declare(_), MsgType::Add) => libc::NFT_MSG_NEWSET,
            (Self::Declare(_), MsgType::Del) => libc::NFT_MSG_DELSET,
            (Self::Elements(_), MsgType::Add) => libc::NFT_MSG_NEWSETELEM,
            (Self::Elements(_), MsgType::Del) => libc::NFT_MSG_DELSETELEM,
        };
        let create = if msg_type == MsgType::Add { libc::NLM_F_CREATE } else { 0 };
        let flags = (libc::NLM_F_ACK | create) as u16;
        // SAFETY: the caller of `write` vouches for the room behind `buf`; the set is live for as
        // long as `self` borrows it, and building a payload does not change it.
        unsafe {
            let header = sys::nftnl_nlmsg_build_hdr(
                buf.cast::<c_char>(),
                kind as u16,
                self.family().proto() as u16,
                flags,
                seq,
            );
            match self {
                Self::Declare(set) => {
                    sys::nftnl_set_nlmsg_build_payload(header, set.set.as_ptr());
                }
                Self::Elements(set) => {
                    sys::nftnl_set_elems_nlmsg_build_payload(header, set.set.as_ptr());
                }
            }
        }
    }
}

/// Elements in one message: 256 of two 64-byte keys stay below the 64 KiB of an attribute.
pub(super) const MAX_ELEMENTS: usize = 256;

/// The register that everything is loaded into and compared in.
pub(super) const REGISTER: u32 = libc::NFT_REG_1 as u32;

/// A set whose key has several fields, each with an interval of its own.
pub(super) const SET_CONCAT: u32 = 0x80;

/// `NFT_OBJECT_COUNTER`.
const OBJECT_COUNTER: u32 = 1;

// linux/netfilter/nf_tables.h, NFT_LIMIT_*.
const LIMIT_PACKETS: u32 = 0;
const LIMIT_INVERT: u32 = 1;
/// The unit of a limit, in seconds.
const A_SECOND: u64 = 1;

/// Bytes of the data that a libnftnl register holds.
const MAX_KEY_BYTES: usize = 64;

/// libnftnl fails to allocate only when memory is out; then this aborts, as the allocator would.
fn or_abort<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}

/// A setter fails only when memory is out, or on an attribute that it does not have.
fn or_die(result: i32) {
    if result < 0 {
        std::process::abort();
    }
}
