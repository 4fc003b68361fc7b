// SPDX-License-Identifier: GPL-2.0

//! What several tests share.

#![allow(dead_code, reason = "each test is a crate, and uses its own part")]

/// A small deterministic generator (xorshift64*): the same run every time, or another with
pub mod env;
pub mod native;

use rkvm_unit::arch::x86::model::decode::{Insn, Mnemonic, Opnd};
use rkvm_unit::arch::x86::model::emulate::Regs;
use rkvm_unit::arch::x86::model::regs::{rflags, Gpr};

/// `RKVM_SEED`.
pub struct Rng(u64);

impl Rng {
    pub fn new(salt: u64) -> Rng {
        let seed = std::env::var("RKVM_SEED")
            .ok()
            .and_then(|s| s.parse::<u64>().ok())
            .unwrap_or(0x9e37_79b9_7f4a_7c15);
        Rng((seed ^ salt.wrapping_mul(0xd129_0d3b_f5a8_7b6d)) | 1)
    }

    pub fn u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn u8(&mut self) -> u8 {
        self.u64().to_le_bytes()[7]
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.u64() >> 16) % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A value that arithmetic finds interesting, or any.
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.below(256),
            _ => self.u64(),
        }
    }
}

/// The flags that an instruction leaves undefined (APM vol. 3, SDM vol. 2), given the registers
/// before it; None when its result is undefined too.
pub fn undefined(i: &Insn, before: &Regs) -> Option<u64> {
    use rflags::{AF, CF, OF, PF, SF, ZF};
    use Mnemonic::*;
    let by = if matches!(i.mnemonic, Shld | Shrd) {
        i.ops[2]
    } else {
        i.ops[1]
    };
    let size = i.size(i.ops[0]);
    let count = match by {
        Opnd::Cl => before.gprs.get(Gpr::Rcx) as u8,
        Opnd::One => 1,
        _ => i.imm as u8,
    } & if size == 8 { 63 } else { 31 };
    let bits = size * 8;
    Some(match i.mnemonic {
        And | Or | Xor | Test => AF,
        Rol | Ror | Rcl | Rcr if count > 1 => OF,
        Shl | Shr | Sar if count == 0 => 0,
        Shl | Shr | Sar => {
            AF | if count > 1 { OF } else { 0 }
                | if count >= bits && i.mnemonic != Sar {
                    CF
                } else {
                    0
                }
        }
        Shld | Shrd if count > bits => return None,
        Shld | Shrd if count == 0 => 0,
        Shld | Shrd => AF | if count > 1 { OF } else { 0 },
        Mul | Imul | Imul1 => SF | ZF | AF | PF,
        Div | Idiv => CF | PF | AF | ZF | SF | OF,
        Bsf | Bsr => CF | PF | AF | SF | OF,
        Tzcnt | Lzcnt => PF | AF | SF | OF,
        Bt | Bts | Btr | Btc => PF | AF | SF | OF,
        Andn | Blsi | Blsr | Bzhi => AF | PF,
        Blsmsk => AF | PF | ZF,
        Bextr => AF | PF | SF,
        Aaa | Aas => PF | ZF | SF | OF,
        Daa | Das => OF,
        Aam | Aad => CF | AF | OF,
        Bswap if i.opsize == 2 => return None,
        _ => 0,
    })
}
