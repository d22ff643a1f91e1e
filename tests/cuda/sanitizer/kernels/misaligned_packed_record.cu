// Misaligned: an int is read out of the middle of packed bytes.
//   Mistake   A record is one tag byte and a 4-byte int; the int of record 0 starts at byte 1.
//   Why       A host CPU reads ints from any address. A GPU wants 4-byte loads at multiples of 4.
//   Fix       Put the int together from its bytes.
//
// expect: misaligned
// launch: grid=1 block=32 args=record:uint8[160],y:int32[32]
// array: record
// index: 1
// block: 0
// threads: 0
// result: y = torch.tensor(list(struct.unpack("<" + "Bi" * 32, bytes(record.tolist())))[1::2], dtype=torch.int32)

extern "C" __global__ void bad(const unsigned char* record, int* y) {
    int i = threadIdx.x;
    const unsigned char* field = record + 5 * i + 1;
    y[i] = *reinterpret_cast<const int*>(field);  // <-- here
}

extern "C" __global__ void good(const unsigned char* record, int* y) {
    int i = threadIdx.x;
    const unsigned char* field = record + 5 * i + 1;
    y[i] = field[0] | field[1] << 8 | field[2] << 16 | field[3] << 24;
}
