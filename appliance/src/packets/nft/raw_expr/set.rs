//! Sets with their elements, and named counters, as messages to the kernel.
//!
//! libnftnl copies all names and values. A value that is longer than its room is left out, and is
//! then missed when the table is read back.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    ptr::NonNull,
};

use nftnl::{
    MsgType, NlMsg, ProtoFamily,
    nftnl_sys::{self as sys, libc},
};

use super::{OBJECT_COUNTER, or_abort, or_die};
use crate::packets::ruleset::language::TableFamily;

/// A set with some of its elements, owned by libnftnl's allocator.
pub(crate) struct RawSet {
    set: NonNull<sys::nftnl_set>,
    family: TableFamily,
}

/// A named counter, owned by libnftnl's allocator.
pub(crate) struct RawCounter {
    object: NonNull<sys::nftnl_obj>,
    family: TableFamily,
}

/// The declaration of a set.
#[derive(Debug, Clone)]
pub(crate) struct Declaration {
    pub(crate) table: &'static CStr,
    pub(crate) family: TableFamily,
    pub(crate) name: CString,
    /// Most elements that it takes; 0 for no bound.
    pub(crate) size: u32,
    /// Ties lookups of the same transaction to an anonymous set; unique within it.
    pub(crate) id: u32,
    /// `NFT_SET_*`.
    pub(crate) flags: u32,
    /// The data type by nft's numbering, so that `nft list` can print the elements.
    pub(crate) key_type: u32,
    /// Bytes of each field of the key, each padded to four where there are several.
    pub(crate) fields: Vec<u8>,
    /// The value type of a map by nft's numbering, and the bytes of a value.
    pub(crate) data: Option<(u32, u8)>,
    /// Notes of nft for itself, which the kernel only keeps.
    pub(crate) userdata: Vec<u8>,
}

/// One element: a key, the first or last key of an interval, or both ends at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RawElement {
    pub(crate) key: Vec<u8>,
    pub(crate) key_end: Option<Vec<u8>>,
    pub(crate) ends_interval: bool,
    /// The map's value for the key.
    pub(crate) data: Option<Vec<u8>>,
}

/// A message to the kernel about a set. When added, it creates the object; when deleted, it removes
/// the object, and `Elements` of a set without any empties the kernel's set.
pub(crate) enum SetMessage<'a> {
    Declare(&'a RawSet),
    Elements(&'a RawSet),
}

impl RawSet {
    /// Creates a set as declared, with these elements. At most [`MAX_ELEMENTS`] of them fit a
    /// message.
    pub(crate) fn new(declaration: &Declaration, elements: &[RawElement]) -> Self {
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
        let data = declaration.data.into_iter().flat_map(|(kind, bytes)| {
            [(sys::NFTNL_SET_DATA_TYPE, kind), (sys::NFTNL_SET_DATA_LEN, bytes.into())]
        });
        for (number, value) in numbers.into_iter().chain(size).chain(data) {
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
            (sys::NFTNL_SET_ELEM_DATA, element.data.as_ref()),
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
    /// Creates the declaration of a counter; the kernel keeps its count.
    pub(crate) fn new(table: &CStr, family: TableFamily, name: &CStr) -> Self {
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
    /// Returns libnftnl's number of the family.
    pub(crate) fn proto(self) -> ProtoFamily {
        match self {
            Self::Inet => ProtoFamily::Inet,
            Self::Netdev => ProtoFamily::NetDev,
            Self::Ip => ProtoFamily::Ipv4,
            Self::Ip6 => ProtoFamily::Ipv6,
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

/// Most elements in one message: 256 of two 64-byte keys stay below the 64 KiB of an attribute.
pub(crate) const MAX_ELEMENTS: usize = 256;

/// A set whose key has several fields, each with an interval of its own.
pub(crate) const SET_CONCAT: u32 = 0x80;

/// Bytes of data that a libnftnl register holds.
const MAX_KEY_BYTES: usize = 64;
