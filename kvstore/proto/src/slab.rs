//! Values that stay in their places and are found by key: most often by the key that was found last.
//! Knows ordered keys; not what the values are. Held by both cores for what every frame looks up.
//!
//! A frame asks for its connection, its lane and its segment several times, and the next frame asks for the same ones. So
//! finding the last key again costs a comparison; another one costs a search of a tree, and whoever keeps the place of a
//! value (a queue) finds it without either.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::Cell;

/// The place of a value, until it is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u32);

/// Values by key.
#[derive(Debug)]
pub(crate) struct Slab<K, V> {
    index: BTreeMap<K, Place>,
    places: Vec<Option<(K, V)>>,
    free: Vec<Place>,
    /// Where the last key was found; wrong at worst.
    last: Cell<Place>,
}

impl<K, V> Default for Slab<K, V> {
    fn default() -> Self {
        Self { index: BTreeMap::new(), places: Vec::new(), free: Vec::new(), last: Cell::new(Place(0)) }
    }
}

impl<K: Ord + Copy, V> Slab<K, V> {
    /// Where the value of this key is.
    #[inline(always)]
    pub(crate) fn place(&self, key: K) -> Option<Place> {
        let last = self.last.get();
        if let Some(Some((found, _))) = self.places.get(last.0 as usize)
            && *found == key
        {
            return Some(last);
        }
        self.search(key)
    }

    #[inline(never)]
    fn search(&self, key: K) -> Option<Place> {
        let place = *self.index.get(&key)?;
        self.last.set(place);
        Some(place)
    }

    /// The value at a place, with its key.
    #[inline]
    pub(crate) fn at(&self, place: Place) -> Option<(K, &V)> {
        self.places.get(place.0 as usize)?.as_ref().map(|(key, value)| (*key, value))
    }

    /// The value at a place, with its key.
    #[inline]
    pub(crate) fn at_mut(&mut self, place: Place) -> Option<(K, &mut V)> {
        self.places.get_mut(place.0 as usize)?.as_mut().map(|(key, value)| (*key, value))
    }

    #[inline]
    pub(crate) fn get(&self, key: K) -> Option<&V> {
        self.at(self.place(key)?).map(|(_, value)| value)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let place = self.place(key)?;
        self.at_mut(place).map(|(_, value)| value)
    }

    pub(crate) fn contains(&self, key: K) -> bool {
        self.place(key).is_some()
    }

    /// Puts a value in, in the place of an older one of the key.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        let place = self.place_or_reserve(key);
        self.places[place.0 as usize] = Some((key, value));
    }

    /// The value of the key, made if it is not there.
    #[inline]
    pub(crate) fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let place = self.place_or_reserve(key);
        &mut self.places[place.0 as usize].get_or_insert_with(|| (key, make())).1
    }

    #[inline(always)]
    fn place_or_reserve(&mut self, key: K) -> Place {
        match self.place(key) {
            Some(place) => place,
            None => self.reserve(key),
        }
    }

    /// Takes a value out of its place for a moment, so that the rest can be used beside it; `put_back` follows.
    pub(crate) fn lift(&mut self, key: K) -> Option<(Place, V)> {
        let place = self.place(key)?;
        self.places[place.0 as usize].take().map(|(_, value)| (place, value))
    }

    /// Puts a value back that `lift` took out.
    pub(crate) fn put_back(&mut self, place: Place, key: K, value: V) {
        self.places[place.0 as usize] = Some((key, value));
    }

    /// A place for a new key, to be filled at once.
    fn reserve(&mut self, key: K) -> Place {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            // More than 2^32 values do not fit a machine.
            Place(u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX))
        });
        self.index.insert(key, place);
        self.last.set(place);
        place
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let place = self.index.remove(&key)?;
        self.free.push(place);
        self.places[place.0 as usize].take().map(|(_, value)| value)
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Keys, ascending.
    pub(crate) fn keys(&self) -> impl Iterator<Item = K> + '_ {
        self.index.keys().copied()
    }

    /// Keys and values, by ascending keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &V)> + '_ {
        self.index.values().filter_map(|&place| self.at(place))
    }

    /// Values, by ascending keys.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> + '_ {
        self.iter().map(|(_, value)| value)
    }

    /// Keys and values, in no order that means anything but the same one each time.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut V)> + '_ {
        self.places.iter_mut().flatten().map(|(key, value)| (*key, value))
    }

    /// Values, in the order of `iter_mut`.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> + '_ {
        self.iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_slab_finds_what_a_map_finds(steps in proptest::collection::vec((0u8..6, 0u8..8), 1..200)) {
            let mut slab = Slab::default();
            let mut oracle = BTreeMap::new();
            for (number, (step, key)) in steps.into_iter().enumerate() {
                match step {
                    0 => {
                        slab.insert(key, number);
                        oracle.insert(key, number);
                    }
                    1 => prop_assert_eq!(slab.remove(key), oracle.remove(&key)),
                    2 => prop_assert_eq!(
                        *slab.get_or_insert_with(key, || number),
                        *oracle.entry(key).or_insert(number)
                    ),
                    3 => {
                        let lifted = slab.lift(key);
                        prop_assert_eq!(lifted.map(|(_, value)| value), oracle.get(&key).copied());
                        if let Some((place, value)) = lifted {
                            slab.put_back(place, key, value);
                        }
                    }
                    4 => prop_assert_eq!(slab.get_mut(key).map(|value| *value), oracle.get(&key).copied()),
                    _ => prop_assert_eq!(slab.contains(key), oracle.contains_key(&key)),
                }
                let at = slab.place(key).and_then(|place| slab.at(place));
                prop_assert_eq!(at, oracle.get(&key).map(|value| (key, value)));
                prop_assert!(slab.iter().eq(oracle.iter().map(|(&key, value)| (key, value))));
                prop_assert_eq!(slab.iter_mut().count(), oracle.len());
                prop_assert!(slab.places.len() <= 8, "places are used again");
            }
        }
    }
}
