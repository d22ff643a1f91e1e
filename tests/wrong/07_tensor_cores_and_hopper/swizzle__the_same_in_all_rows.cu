// reason: mismatch
return (piece + 3) % 8;
