//! An allocator that lets the device's threads use the memory of a batch of packets for the next.
//!
//! The protocol's engine allocates each packet that it seals, and an allocator with one lock costs more than encryption
//! there. Everywhere else, and in the agent, this is dlmalloc: musl's own gives a buffer's pages back to the kernel with each
//! event of a watch, and takes others for the next (docs/decisions/0014-own-data-path.md has what else was measured).

#![allow(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    marker::PhantomData,
    ptr,
};

#[cfg(not(sanitizing))]
use dlmalloc::GlobalDlmalloc as Heap;
// A sanitizer watches malloc's blocks alone: e2e/sanitize.
#[cfg(sanitizing)]
use std::alloc::System as Heap;

/// dlmalloc, with shelves for threads that ask for them.
pub struct Recycling;

/// Most bytes that a thread keeps: some batches.
const LIMIT: usize = 512 << 10;

/// How many sizes have a shelf of their own: all multiples of 16 up to a usual packet's.
const SHELVES: usize = 128;

/// Blocks of one layout, each with the address of the next in its first bytes.
struct Shelf {
    first: Cell<*mut u8>,
    layout: Cell<Layout>,
}

struct Shelves {
    /// Whether the thread keeps what it frees.
    open: Cell<bool>,
    bytes: Cell<usize>,
    shelves: [Shelf; SHELVES],
}

thread_local! {
    // Without an initializer that runs and without a destructor, so that it can be used at any time of a thread.
    static SHELF: Shelves = const {
        Shelves {
            open: Cell::new(false),
            bytes: Cell::new(0),
            shelves: [const { Shelf { first: Cell::new(ptr::null_mut()), layout: Cell::new(Layout::new::<()>()) } };
                SHELVES],
        }
    };
}

impl Shelves {
    /// The shelf for `layout`, where this thread has them and the block has room for an address.
    fn shelf(&self, layout: Layout) -> Option<&Shelf> {
        let fits = layout.size() >= size_of::<*mut u8>() && layout.align() <= align_of::<*mut u8>();
        self.shelves.get(layout.size() / 16 % SHELVES).filter(|_| self.open.get() && fits)
    }

    /// A block that was allocated with `layout`.
    fn take(&self, layout: Layout) -> Option<*mut u8> {
        let shelf = self.shelf(layout).filter(|shelf| shelf.layout.get() == layout)?;
        let block = shelf.first.get();
        if block.is_null() {
            return None;
        }
        // SAFETY: `put` wrote an address there, into a block that is as large, and nobody else has had the block since.
        shelf.first.set(unsafe { block.cast::<*mut u8>().read_unaligned() });
        self.bytes.set(self.bytes.get() - layout.size());
        Some(block)
    }

    /// Keeps a block that was allocated with `layout` and is nobody's now; false where there is no place.
    fn put(&self, block: *mut u8, layout: Layout) -> bool {
        let bytes = self.bytes.get() + layout.size();
        let Some(shelf) = self.shelf(layout).filter(|_| bytes <= LIMIT) else { return false };
        if shelf.layout.get() != layout {
            if !shelf.first.get().is_null() {
                return false;
            }
            shelf.layout.set(layout);
        }
        // SAFETY: the block is ours by now and has room for an address, as `shelf` has seen to.
        unsafe { block.cast::<*mut u8>().write_unaligned(shelf.first.get()) };
        shelf.first.set(block);
        self.bytes.set(bytes);
        true
    }
}

// SAFETY: every block is the heap's. One comes from a shelf only for the layout for which the heap gave it, after its owner has
// given it back, and once: `take` removes it. So what the heap needs to hold for a block holds for it all the time.
unsafe impl GlobalAlloc for Recycling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's duty is passed on.
        SHELF.with(|shelves| shelves.take(layout)).unwrap_or_else(|| unsafe { Heap.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match SHELF.with(|shelves| shelves.take(layout)) {
            Some(block) => {
                // SAFETY: the block has as many bytes as its layout.
                unsafe { block.write_bytes(0, layout.size()) };
                block
            }
            // SAFETY: the caller's duty is passed on.
            None => unsafe { Heap.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !SHELF.with(|shelves| shelves.put(block, layout)) {
            // SAFETY: the caller's duty is passed on.
            unsafe { Heap.dealloc(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's duty is passed on.
        unsafe { Heap.realloc(block, layout, size) }
    }
}

/// While this lives, its thread keeps the blocks that it frees. Without [`Recycling`] it does nothing.
pub(crate) struct Recycler(PhantomData<*mut u8>);

impl Recycler {
    /// For the thread that calls.
    pub(crate) fn new() -> Self {
        SHELF.with(|shelves| shelves.open.set(true));
        Self(PhantomData)
    }
}

impl Drop for Recycler {
    fn drop(&mut self) {
        SHELF.with(|shelves| {
            for shelf in &shelves.shelves {
                let layout = shelf.layout.get();
                while let Some(block) = shelves.take(layout) {
                    // SAFETY: the heap gave it with this layout, and it is nobody's.
                    unsafe { Heap.dealloc(block, layout) };
                }
            }
            shelves.open.set(false);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[global_allocator]
    static ALLOCATOR: Recycling = Recycling;

    fn size() -> impl Strategy<Value = usize> {
        prop::sample::select(vec![
            0_usize, 1, 7, 8, 15, 16, 17, 1452, 1452, 1452, 1453, 3500, 3501, 70_000, 300_000,
        ])
    }

    proptest! {
        /// Whatever is allocated, freed, resized: a block keeps what was written to it, and a zeroed one is zero.
        #[test]
        fn blocks_are_their_owners(actions in prop::collection::vec((any::<u8>(), size(), 0..20_usize), 1..100)) {
            let recycler = Recycler::new();
            let mut blocks: Vec<Vec<u8>> = Vec::new();
            for (fill, size, at) in actions {
                match fill % 3 {
                    0 => {
                        let mut block = vec![0; size];
                        prop_assert!(block.iter().all(|byte| *byte == 0));
                        block.fill(fill);
                        blocks.push(block);
                    }
                    1 if at < blocks.len() => drop(blocks.swap_remove(at)),
                    _ => {
                        if let Some(block) = blocks.get_mut(at) {
                            let old = block.first().copied();
                            block.resize(size, old.unwrap_or(fill));
                        }
                    }
                }
                for block in &blocks {
                    prop_assert!(block.iter().all(|byte| Some(byte) == block.first()));
                }
            }
            drop(recycler);
            let after = SHELF.with(|shelves| (shelves.open.get(), shelves.bytes.get()));
            prop_assert_eq!(after, (false, 0));
        }
    }

    #[test]
    fn a_block_comes_back_for_its_layout_alone() {
        let _recycler = Recycler::new();
        let block = vec![1_u8; 1452];
        let address = block.as_ptr();
        drop(block);
        let other = vec![1_u8; 1453];
        assert_ne!(other.as_ptr(), address);
        let same = vec![0_u8; 1452];
        assert_eq!(same.as_ptr(), address);
    }
}
