package git

import "encoding/binary"

// applyDelta makes an object out of another: a delta is a list of ranges to copy from it and of bytes to insert.
func applyDelta(base, delta []byte) ([]byte, error) {
	from, n := binary.Uvarint(delta)
	if n <= 0 || from != uint64(len(base)) {
		return nil, errPack
	}
	delta = delta[n:]
	size, n := binary.Uvarint(delta)
	if n <= 0 || size > maxInMemory {
		return nil, errPack
	}
	delta = delta[n:]
	out := make([]byte, 0, size)
	for len(delta) > 0 {
		var piece []byte
		var err error
		if piece, delta, err = deltaPiece(base, delta); err != nil {
			return nil, err
		}
		if uint64(len(out)+len(piece)) > size {
			return nil, errPack
		}
		out = append(out, piece...)
	}
	if uint64(len(out)) != size {
		return nil, errPack
	}
	return out, nil
}

// deltaPiece reads one instruction. It returns the bytes that the instruction stands for, and what comes after it.
func deltaPiece(base, delta []byte) (piece, rest []byte, err error) {
	op := delta[0]
	delta = delta[1:]
	if op&0x80 == 0 { // the next op bytes; 0 is reserved
		if op == 0 || int(op) > len(delta) {
			return nil, nil, errPack
		}
		return delta[:op], delta[op:], nil
	}
	var at, length uint64 // only the bytes of them that are not zero are written
	for i := range 7 {
		if op&(1<<i) == 0 {
			continue
		}
		if len(delta) == 0 {
			return nil, nil, errPack
		}
		if i < 4 {
			at |= uint64(delta[0]) << (8 * i)
		} else {
			length |= uint64(delta[0]) << (8 * (i - 4))
		}
		delta = delta[1:]
	}
	if length == 0 {
		length = 0x10000
	}
	if at+length > uint64(len(base)) {
		return nil, nil, errPack
	}
	return base[at : at+length], delta, nil
}
