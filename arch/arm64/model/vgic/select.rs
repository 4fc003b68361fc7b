// SPDX-License-Identifier: GPL-2.0

//! Which interrupts get a list register.

use super::lr::MAX_LRS;

/// A candidate's place in the order; the least comes first. From the top: class, priority,
/// whether it lacks a physical interrupt, INTID, group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u64);

/// What matters before the priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Pending: first of all, so that a guest that has many active still gets the next.
    Pending,
    /// Active: the guest can end it outside of a list register too.
    Active,
    /// Pending in a group that the guest's CPU interface has disabled
    Off,
}

impl Key {
    pub(super) const fn new(
        class: Class,
        priority: u8,
        backed: bool,
        intid: u32,
        group1: bool,
    ) -> Self {
        Self(
            (class as u64) << 48
                | (priority as u64) << 40
                | (!backed as u64) << 39
                | (intid as u64 & 0xff_ffff) << 1
                | group1 as u64,
        )
    }

    pub(super) const fn intid(self) -> u32 {
        (self.0 >> 1 & 0xff_ffff) as u32
    }

    pub(super) const fn priority(self) -> u8 {
        (self.0 >> 40 & 0xff) as u8
    }

    pub(super) const fn is_pending(self) -> bool {
        self.0 >> 48 == Class::Pending as u64
    }
}

/// What did not get a list register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outside {
    /// Some of [`Class::Pending`]
    pub(super) pending: bool,
    /// Some of [`Class::Active`]
    pub(super) active: bool,
    /// Some of [`Class::Off`], of group 0 and of group 1
    pub(super) off: [bool; 2],
}

impl Outside {
    fn note(&mut self, key: Key) {
        let [off0, off1] = &mut self.off;
        match key.0 >> 48 {
            0 => self.pending = true,
            1 => self.active = true,
            _ if key.0 & 1 != 0 => *off1 = true,
            _ => *off0 = true,
        }
    }

    pub(super) const fn any(&self) -> bool {
        let [off0, off1] = self.off;
        self.pending || self.active || off0 || off1
    }
}

/// The first few of all candidates, in order.
pub(super) struct Selection {
    keys: [Key; MAX_LRS],
    len: usize,
    room: usize,
    pub(super) outside: Outside,
}

impl Selection {
    pub(super) fn new(room: usize) -> Self {
        Self {
            keys: [Key(0); MAX_LRS],
            len: 0,
            room: room.min(MAX_LRS),
            outside: Outside::default(),
        }
    }

    pub(super) fn offer(&mut self, mut key: Key) {
        for slot in self.keys.iter_mut().take(self.len) {
            if key < *slot {
                core::mem::swap(&mut key, slot);
            }
        }
        match self.keys.get_mut(self.len) {
            Some(slot) if self.len < self.room => {
                *slot = key;
                self.len += 1;
            }
            _ => self.outside.note(key),
        }
    }

    pub(super) fn chosen(&self) -> &[Key] {
        self.keys.get(..self.len).unwrap_or_default()
    }
}
