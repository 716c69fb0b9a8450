//! Values in the client's memory: a pull's, or a program's own that are pushed from where they lie.
//! Knows elements and memory; not keys. Made by tables and tickets.
//! Source: OSDI'14 §3.2; `workers/DESIGN.md` (who owns what is under way).

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use rangefold_transport::{Slice, SliceMut};
use zerocopy::FromBytes;

use crate::table::Element;

/// Values: `[n * width]`, in key order, to be read and written. They count as the client's memory (`memory_bytes_max`) until
/// dropped.
pub struct Values<T: Element> {
    memory: SliceMut,
    element: PhantomData<fn() -> T>,
}

/// Values that nobody writes any more, for pushes that copy nothing. Clones share them.
pub struct SharedValues<T: Element> {
    memory: Slice,
    element: PhantomData<fn() -> T>,
}

impl<T: Element> Values<T> {
    /// Memory of whole elements, from an arena.
    pub(crate) fn new(memory: SliceMut) -> Self {
        Self { memory, element: PhantomData }
    }

    /// Gives up writing, so that they can be pushed without a copy.
    #[must_use]
    pub fn share(self) -> SharedValues<T> {
        SharedValues { memory: self.memory.freeze(), element: PhantomData }
    }
}

impl<T: Element> SharedValues<T> {
    /// The same values for writing, when no clone is left and every push of them is acknowledged.
    ///
    /// # Errors
    /// The values themselves, when somebody still reads them.
    pub fn try_into_values(self) -> Result<Values<T>, Self> {
        match self.memory.try_into_mut() {
            Ok(memory) => Ok(Values { memory, element: PhantomData }),
            Err(memory) => Err(Self { memory, element: PhantomData }),
        }
    }

    /// The memory, shared.
    pub(crate) fn slice(&self) -> Slice {
        self.memory.clone()
    }
}

impl<T: Element> Clone for SharedValues<T> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), element: PhantomData }
    }
}

/// What an arena gives is 64-byte aligned, and was taken for whole elements.
const WHOLE: &str = "memory of an arena is aligned and was taken for whole elements";

impl<T: Element> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        <[T]>::ref_from_bytes(self.memory.as_bytes()).unwrap_or_else(|_| unreachable!("{WHOLE}"))
    }
}

impl<T: Element> DerefMut for Values<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        <[T]>::mut_from_bytes(self.memory.as_mut_bytes()).unwrap_or_else(|_| unreachable!("{WHOLE}"))
    }
}

impl<T: Element> Deref for SharedValues<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        <[T]>::ref_from_bytes(self.memory.as_bytes()).unwrap_or_else(|_| unreachable!("{WHOLE}"))
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for SharedValues<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
