//! A program of one's own: `rangefold launch --servers 2 --workers 3 -- ./sums`, which sets the variables.
use rangefold::{DEADLINE, ElementType, TableSpec, UpdateFunction, remote};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let remote::Environment { options, transport, .. } = remote::Environment::read()?;
    let (client, transport) = remote::connect(&options, transport)?;
    eprintln!("worker {:?} over {transport}", options.rank);
    client.wait_for_lanes(DEADLINE)?; // the job starts when all workers have joined
    let sums = client.table::<f64>(&TableSpec::dense("sums", ElementType::F64, 8, UpdateFunction::Add))?;
    sums.push(0..8, &[1.0; 8])?.wait(DEADLINE)?;
    client.barrier(DEADLINE)?; // everybody has pushed
    let values = sums.pull(0..8)?.wait(DEADLINE)?;
    assert_eq!(*values, [f64::from(options.workers); 8]);
    if options.rank == Some(0) {
        println!("{values:?}");
    }
    client.leave();
    Ok(())
}
