// SPDX-License-Identifier: GPL-2.0

//! The LPIs of a VM: what the guest's ITSes have mapped, for those who send messages from any
//! context, and for the commands that change it.
//!
//! Locks: [`Lpis::table`], then a vCPU's [`gic::Cpu::state`]. Both disable interrupts. So a message
//! goes to the vCPU that its LPI has now, and a command that moves the LPI comes before or after.

use super::{
    gic::{Cpu, Gic},
    model::its::{self, ConfigTable, LpiConfig, PendingTable, Refused},
    model::vgic::{LpiSlots, Taken, MAX_LRS},
};
use crate::{
    host::{grow_vec::NoMemory, trace, work},
    memory::View,
};
use kernel::{
    new_spinlock_irq,
    prelude::*,
    rbtree::{RBTree, RBTreeNode, RBTreeNodeReservation},
    sync::SpinLockIrq,
};

/// What a message says of its sender: ITS, DeviceID, EventID, from the high bits down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source(u64);

impl Source {
    /// `None`: no ITS of ours has such ids.
    #[inline]
    pub(crate) fn new(its: u8, device: u32, event: u32) -> Option<Self> {
        let (device, event) = (u16::try_from(device).ok()?, u16::try_from(event).ok()?);
        Some(Self(
            u64::from(its) << 32 | u64::from(device) << 16 | u64::from(event),
        ))
    }
}

/// A mapped LPI.
#[derive(Clone, Copy)]
struct Lpi {
    intid: u32,
    /// The index of the vCPU that it targets, if its collection is mapped.
    vcpu: Option<u32>,
    config: LpiConfig,
}

/// # Invariants
/// `by_intid` has exactly the LPIs of `by_source`, so that no two events lead to one.
struct Table {
    by_source: RBTree<Source, Lpi>,
    by_intid: RBTree<u32, Source>,
}

impl Table {
    fn lpi_mut(&mut self, intid: u32) -> Option<&mut Lpi> {
        let source = *self.by_intid.get(&intid)?;
        self.by_source.get_mut(&source)
    }

    fn lpi(&self, intid: u32) -> Option<Lpi> {
        self.by_source.get(self.by_intid.get(&intid)?).copied()
    }

    /// Looks for the first LPI from `intid` on that targets `vcpu`, among a few.
    fn look(&mut self, intid: u32, vcpu: u32) -> Look {
        // Interrupts are off.
        const FEW: u32 = 64;
        let mut at = self.by_intid.cursor_lower_bound_mut(&intid);
        for _ in 0..FEW {
            let Some(cursor) = at else {
                return Look::End;
            };
            let (intid, source) = cursor.current();
            if self.by_source.get(source).and_then(|l| l.vcpu) == Some(vcpu) {
                return Look::Found(*intid);
            }
            at = cursor.move_next();
        }
        at.map_or(Look::End, |c| Look::On(*c.current().0))
    }
}

/// What [`Table::look`] has seen.
enum Look {
    /// One
    Found(u32),
    /// None, and where to go on
    On(u32),
    /// None, up to the last
    End,
}

/// The LPIs of a VM.
#[pin_data]
pub(crate) struct Lpis {
    #[pin]
    table: SpinLockIrq<Table>,
}

impl Lpis {
    /// None.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            table <- new_spinlock_irq!(
                Table {
                    by_source: RBTree::new(),
                    by_intid: RBTree::new(),
                },
                "rkvm::Lpis::table"
            ),
        })
    }

    /// A message came. Whether it led to an LPI of a vCPU. Any context.
    pub(crate) fn signal(&self, gic: &Gic, source: Source) -> bool {
        let table = self.table.lock();
        let Some(&lpi) = table.by_source.get(&source) else {
            return false;
        };
        let Some(cpu) = lpi.vcpu.and_then(|v| gic.cpu_at(v)) else {
            return false;
        };
        let ring = pend(cpu, &lpi);
        drop(table);
        if ring {
            cpu.kick.ring(0);
        }
        true
    }
}

/// Whether to ring. The table is locked.
fn pend(cpu: &Cpu, lpi: &Lpi) -> bool {
    let LpiConfig { priority, enabled } = lpi.config;
    let mut state = cpu.state.lock();
    // There is room for each LPI that targets the vCPU: `Hand::make_room`.
    state
        .private
        .set_lpi_pending(lpi.intid, priority, enabled)
        .unwrap_or(false)
}

/// Guest memory for an ITS. What takes long gives others their turn here, and ends when the thread
/// is killed.
pub(crate) struct Mem<'a>(pub(crate) &'a View<'a>);

impl its::Memory for Mem<'_> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), its::Fault> {
        work::yield_now();
        if work::killed() {
            return Err(its::Fault);
        }
        self.0.read(gpa, buf).map_err(|_| its::Fault)
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), its::Fault> {
        self.0.write(gpa, data).map_err(|_| its::Fault)
    }

    fn writable(&self, gpa: u64) -> bool {
        self.0.slot(gpa >> 12).is_some_and(|s| !s.readonly())
    }
}

/// What an ITS works on the LPIs with. Who has one holds the lock of the models, so that there is
/// one at a time; only messages come in between.
pub(crate) struct Hand<'a> {
    gic: &'a Gic,
    mem: Mem<'a>,
    /// Which ITS.
    its: u8,
}

impl<'a> Hand<'a> {
    pub(crate) fn new(gic: &'a Gic, view: &'a View<'a>, its: u8) -> Self {
        Self {
            gic,
            mem: Mem(view),
            its,
        }
    }

    fn lpis(&self) -> &'a Lpis {
        &self.gic.itses.lpis
    }

    /// Makes room for one more LPI on `cpu`, which has `mapped` at most.
    fn make_room(&self, cpu: &Cpu) -> Result<(), NoMemory> {
        let (capacity, mapped) = {
            let state = cpu.state.lock();
            (state.private.lpi_capacity(), state.lpis)
        };
        // Those in list registers that were unmapped since keep their slots until the next exit.
        let wanted = mapped + 1 + MAX_LRS;
        if wanted <= capacity {
            return Ok(());
        }
        let slots = LpiSlots::new(wanted + mapped / 2)?;
        let room = slots.capacity() > mapped;
        // The old ones are freed when the lock is free again.
        let _old = cpu.state.lock().private.set_lpi_slots(slots);
        if room {
            Ok(())
        } else {
            Err(NoMemory)
        }
    }

    fn ring(&self, cpu: Option<&Cpu>, ring: bool) {
        if let (Some(cpu), true) = (cpu, ring) {
            cpu.kick.ring(0);
        }
    }

    /// Tries to make the LPI target `to`. `false`: it is in a list register of the vCPU that it
    /// leaves, which will not get it there again.
    fn try_move(&self, intid: u32, to: Option<u32>) -> bool {
        let mut table = self.lpis().table.lock();
        let Some(lpi) = table.lpi_mut(intid) else {
            return true;
        };
        if lpi.vcpu == to {
            return true;
        }
        let old = lpi.vcpu.and_then(|v| self.gic.cpu_at(v));
        let mut pending = false;
        if let Some(old) = old {
            let mut state = old.state.lock();
            match state.private.take_lpi(intid) {
                Taken::Idle => {}
                Taken::Pending => pending = true,
                Taken::InListRegister => {
                    let _ = state
                        .private
                        .configure_lpi(intid, lpi.config.priority, false);
                    return false;
                }
            }
            state.lpis = state.lpis.saturating_sub(1);
        }
        lpi.vcpu = to;
        let new = to.and_then(|v| self.gic.cpu_at(v));
        let mut ring = false;
        if let Some(new) = new {
            new.state.lock().lpis += 1;
            ring = pending && pend(new, lpi);
        }
        drop(table);
        self.ring(new, ring);
        true
    }

    fn retarget(&self, intid: u32, to: Option<u32>) -> Result<(), NoMemory> {
        if let Some(cpu) = to.and_then(|v| self.gic.cpu_at(v)) {
            self.make_room(cpu)?;
        }
        while !self.try_move(intid, to) {
            // List registers are emptied at each exit, and a ring makes the guest exit.
            let old = self.lpis().table.lock().lpi(intid).and_then(|l| l.vcpu);
            self.ring(old.and_then(|v| self.gic.cpu_at(v)), true);
            work::yield_now();
        }
        Ok(())
    }

    /// Calls `f` for each LPI that targets `vcpu` when its turn comes.
    fn each_of(
        &self,
        vcpu: u32,
        mut f: impl FnMut(u32) -> Result<(), NoMemory>,
    ) -> Result<(), NoMemory> {
        let mut from = 0;
        loop {
            let look = self.lpis().table.lock().look(from, vcpu);
            match look {
                Look::Found(intid) => {
                    f(intid)?;
                    from = intid + 1;
                }
                Look::On(intid) => from = intid,
                Look::End => return Ok(()),
            }
            work::yield_now();
            if work::killed() {
                return Ok(());
            }
        }
    }

    /// The LPIs of `vcpu` have been enabled: what its table says is pending is pending.
    pub(crate) fn enabled(&mut self, vcpu: u32) -> Result<(), NoMemory> {
        let Some(table) = its::Lpis::pending_table(self, vcpu) else {
            return Ok(());
        };
        self.each_of(vcpu, |intid| {
            // What is not in memory is not pending.
            if table.is_pending(&self.mem, intid).unwrap_or(false)
                && table.set(&self.mem, intid, false).is_ok()
            {
                self.pend(intid);
            }
            Ok(())
        })
    }

    /// Reads the configuration of a mapped LPI anew.
    pub(crate) fn invalidate(&self, intid: u32) {
        let config = its::Lpis::config_table(self);
        if let (true, Ok(c)) = (config.contains(intid), config.read(&self.mem, intid)) {
            self.set_config(intid, c);
        }
    }

    fn set_config(&self, intid: u32, config: LpiConfig) {
        let mut table = self.lpis().table.lock();
        let Some(lpi) = table.lpi_mut(intid) else {
            return;
        };
        lpi.config = config;
        let cpu = lpi.vcpu.and_then(|v| self.gic.cpu_at(v));
        let ring = cpu.is_some_and(|c| {
            let LpiConfig { priority, enabled } = config;
            let mut state = c.state.lock();
            state.private.configure_lpi(intid, priority, enabled)
        });
        drop(table);
        self.ring(cpu, ring);
    }

    fn pend(&self, intid: u32) {
        let table = self.lpis().table.lock();
        let Some(lpi) = table.lpi(intid) else {
            return;
        };
        let cpu = lpi.vcpu.and_then(|v| self.gic.cpu_at(v));
        let ring = cpu.is_some_and(|c| pend(c, &lpi));
        drop(table);
        self.ring(cpu, ring);
    }

    /// `KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES`, for one vCPU.
    ///
    /// # Errors
    /// The table is not in guest memory.
    pub(crate) fn save_pending(&self, vcpu: u32) -> Result<(), its::Fault> {
        let (Some(table), Some(cpu)) =
            (its::Lpis::pending_table(self, vcpu), self.gic.cpu_at(vcpu))
        else {
            return Ok(());
        };
        let mut failed = Ok(());
        let _ = self.each_of(vcpu, |intid| {
            let is = cpu.state.lock().private.is_lpi_pending(intid);
            failed = failed.and(table.set(&self.mem, intid, is));
            Ok(())
        });
        failed
    }
}

impl its::Lpis for Hand<'_> {
    fn vcpu(&self, processor: u32) -> Option<u32> {
        self.gic.vcpu_with_id(processor)
    }

    fn config_table(&self) -> ConfigTable {
        // All redistributors have the same (GICR_TYPER.CommonLPIAff is 0).
        let of = |v: u32| {
            let state = self.gic.cpu_at(v)?.state.lock();
            let (on, base) = (state.private.lpis_enabled(), state.private.propbaser());
            Some((on, base))
        };
        let mut bases = (0..self.gic.vcpus.len()).filter_map(of);
        let enabled = bases.find(|(on, _)| *on).or_else(|| of(0));
        ConfigTable::new(enabled.map_or(0, |(_, base)| base))
    }

    fn pending_table(&self, vcpu: u32) -> Option<PendingTable> {
        let state = self.gic.cpu_at(vcpu)?.state.lock();
        let on = state.private.lpis_enabled();
        on.then(|| PendingTable::new(state.private.pendbaser()))
    }

    fn map(
        &mut self,
        intid: u32,
        (device, event): (u32, u32),
        vcpu: Option<u32>,
    ) -> Result<bool, NoMemory> {
        let Some(source) = Source::new(self.its, device, event) else {
            return Ok(false);
        };
        let a = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT).map_err(|_| NoMemory)?;
        let b = RBTreeNode::new(intid, source, GFP_KERNEL_ACCOUNT).map_err(|_| NoMemory)?;
        let cpu = vcpu.and_then(|v| self.gic.cpu_at(v));
        if let Some(cpu) = cpu {
            self.make_room(cpu)?;
        }
        let mut table = self.lpis().table.lock();
        if table.by_intid.get(&intid).is_some() || table.by_source.get(&source).is_some() {
            return Ok(false);
        }
        let lpi = Lpi {
            intid,
            vcpu,
            config: LpiConfig {
                priority: 0,
                enabled: false,
            },
        };
        // INVARIANT: both get it.
        table.by_source.insert(a.into_node(source, lpi));
        table.by_intid.insert(b);
        if let Some(cpu) = cpu {
            cpu.state.lock().lpis += 1;
        }
        Ok(true)
    }

    fn unmap(&mut self, intid: u32) {
        let mut table = self.lpis().table.lock();
        // Freed when the lock is free again.
        let by_intid = table.by_intid.remove_node(&intid);
        let Some((_, source)) = by_intid.map(RBTreeNode::to_key_value) else {
            return;
        };
        let by_source = table.by_source.remove_node(&source);
        let Some((_, lpi)) = by_source.map(RBTreeNode::to_key_value) else {
            return;
        };
        let cpu = lpi.vcpu.and_then(|v| self.gic.cpu_at(v));
        let ring = cpu.is_some_and(|c| {
            let mut state = c.state.lock();
            state.lpis = state.lpis.saturating_sub(1);
            state.private.clear_lpi(intid)
        });
        drop(table);
        self.ring(cpu, ring);
    }

    fn detach(&mut self, intid: u32) -> Result<(), NoMemory> {
        self.retarget(intid, None)
    }

    fn configure(&mut self, intid: u32, config: LpiConfig) -> Result<(), NoMemory> {
        self.set_config(intid, config);
        Ok(())
    }

    fn set_pending(&mut self, intid: u32, _vcpu: u32) -> Result<(), NoMemory> {
        self.pend(intid);
        Ok(())
    }

    fn clear_pending(&mut self, intid: u32) {
        let table = self.lpis().table.lock();
        let cpu = table.lpi(intid).and_then(|l| l.vcpu);
        let cpu = cpu.and_then(|v| self.gic.cpu_at(v));
        let ring = cpu.is_some_and(|c| c.state.lock().private.clear_lpi(intid));
        drop(table);
        self.ring(cpu, ring);
    }

    fn move_to(&mut self, intid: u32, vcpu: u32) -> Result<(), NoMemory> {
        self.retarget(intid, Some(vcpu))
    }

    fn move_all(&mut self, from: u32, to: u32) -> Result<(), NoMemory> {
        self.each_of(from, |intid| self.retarget(intid, Some(to)))
    }

    fn invalidate_all(&mut self, vcpu: u32) -> Result<(), NoMemory> {
        self.each_of(vcpu, |intid| {
            self.invalidate(intid);
            Ok(())
        })
    }

    fn refused(&mut self, r: Refused) {
        if trace::may_log() {
            pr_info!(
                "ITS: command {:#04x} at {:#x} of the queue refused: {}\n",
                r.code,
                r.offset,
                r.reason
            );
        }
    }
}
