// SPDX-License-Identifier: GPL-2.0

//! User space's say over hypercalls: KVM_ARM_VM_SMCCC_FILTER (Linux `Documentation/virt/kvm/devices/vm.rst`, 5.1).

/// Ranges at most. Linux has no limit; users set a handful.
pub const MAX_RANGES: usize = 64;

/// What to do with a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum FilterAction {
    /// Serve it, if the guest has it.
    #[default]
    Handle = 0,
    /// Answer NOT_SUPPORTED.
    Deny = 1,
    /// Leave it to user space.
    Forward = 2,
}

/// Why a range is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterError {
    /// EINVAL: no functions, too many, an unknown action.
    Invalid,
    /// EEXIST: overlaps another, or the functions of the architecture, which user space may not touch: it could
    /// lie about mitigations.
    Exists,
    /// ENOMEM: there is no room for more.
    Full,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Range {
    first: u32,
    last: u32,
    action: FilterAction,
}

/// Ranges of function ids, sorted, without overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    ranges: [Range; MAX_RANGES],
    used: usize,
}

impl Default for Filter {
    fn default() -> Self {
        Filter {
            ranges: [Range::default(); MAX_RANGES],
            used: 0,
        }
    }
}

/// Fast calls of the architecture (owner 0), of either convention.
const RESERVED: [(u32, u32); 2] = [(0x8000_0000, 0x8000_ffff), (0xc000_0000, 0xc000_ffff)];

impl Filter {
    fn ranges(&self) -> &[Range] {
        self.ranges.get(..self.used).unwrap_or(&[])
    }

    /// Adds `count` functions from `base` on.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn insert(&mut self, base: u32, count: u32, action: u8) -> Result<(), FilterError> {
        let action = match action {
            0 => FilterAction::Handle,
            1 => FilterAction::Deny,
            2 => FilterAction::Forward,
            _ => return Err(FilterError::Invalid),
        };
        let last = count
            .checked_sub(1)
            .and_then(|n| base.checked_add(n))
            .ok_or(FilterError::Invalid)?;
        if RESERVED.iter().any(|&(a, b)| base <= b && last >= a) {
            return Err(FilterError::Exists);
        }
        let at = self.ranges().partition_point(|r| r.last < base);
        if self.ranges().get(at).is_some_and(|r| r.first <= last) {
            return Err(FilterError::Exists);
        }
        let after = self
            .ranges
            .get_mut(at..=self.used)
            .ok_or(FilterError::Full)?;
        after.rotate_right(1);
        if let Some(slot) = after.first_mut() {
            *slot = Range {
                first: base,
                last,
                action,
            };
        }
        self.used += 1;
        Ok(())
    }

    /// What to do with a call of this function.
    pub fn action(&self, fid: u32) -> FilterAction {
        let at = self.ranges().partition_point(|r| r.last < fid);
        match self.ranges().get(at) {
            Some(r) if r.first <= fid => r.action,
            _ => FilterAction::Handle,
        }
    }
}
